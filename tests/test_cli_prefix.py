"""The command line about prefixes: registered, verified, revoked, signed, exported, pushed and pulled."""

import json
import os
import shutil
import subprocess

import pytest
from safetensors.torch import save_file

from apl_guard import Prefix, PrefixRegistry


@pytest.mark.smoke
def test_register_list_show_verify(run, trained, prefix):
    """The whole life of a prefix in the registry."""
    assert run("prefix", "list")[0] == 0
    assert run("prefix", "register", trained, "--name", "sd15")[0] == 0

    code, out, _ = run("prefix", "list", "--json")
    assert code == 0
    assert "sd15" in [entry["name"] for entry in json.loads(out)]
    code, out, _ = run("prefix", "show", "sd15")
    assert code == 0
    assert prefix.digest in out
    code, out, _ = run("prefix", "verify", "sd15")
    assert (code, out.startswith("ok sd15")) == (0, True)


def test_verify_of_a_damaged_prefix_fails(run, trained, own_registry):
    """One line on the error output, exit code 2."""
    run("prefix", "register", trained)
    path = own_registry / "random" / "1" / "prefix.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    code, out, err = run("prefix", "verify", "random")

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert str(path) in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_revocation_is_pushed_and_pulled(run, trained, prefix, tmp_path, scheme):
    """That of the version in use, too, for which there is nothing else to copy."""
    shared, home = f"{scheme}{tmp_path / 'shared'}", tmp_path / "home"
    run("prefix", "register", trained, "--name", "sd15")
    assert run("prefix", "push", "sd15", shared)[0] == 0
    assert run("prefix", "pull", shared, "sd15", "--registry", home)[0] == 0
    run("prefix", "revoke", "sd15", "--reason", "weak")

    code, out, _ = run("prefix", "push", "sd15", shared)
    assert code == 0
    assert "no prefix" in out
    assert "is revoked: weak" in out
    assert run("prefix", "pull", shared, "sd15", "--registry", home)[0] == 4
    assert PrefixRegistry(home).revoked() == {prefix.digest: "weak"}


def test_what_is_not_there_is_named_with_its_place(run, trained, tmp_path):
    """A registry that is misspelt holds nothing, and the list says so beside the shipped prefix; so do the others."""
    run("prefix", "register", trained, "--name", "sd15")

    code, out, _ = run("prefix", "list", "--registry", tmp_path / "misspelt")
    assert (code, f"none in {tmp_path / 'misspelt'}" in out) == (0, True)
    assert "none in" not in run("prefix", "list")[1]
    code, _, err = run("prefix", "pull", tmp_path / "misspelt", "sd15")
    assert (code, f"no prefix of this name in {tmp_path / 'misspelt'}" in err) == (2, True)
    assert run("prefix", "show", "sd15")[1].startswith("sd15  (made as random)")
    code, _, err = run("prefix", "register", trained, "--name", "minifaces")
    assert (code, "--name" in err) == (2, True)


def test_a_second_revocation_says_that_there_was_one(run, trained, prefix):
    """Its reason is not on the list."""
    run("prefix", "register", trained, "--name", "sd15")
    assert run("prefix", "revoke", "sd15", "--reason", "weak")[1].startswith("revoked")
    code, out, _ = run("prefix", "revoke", "sd15", "--reason", "other")
    assert (code, out) == (0, f"was revoked before: {prefix.digest}  weak\n")


def test_a_reason_is_shown_as_it_was_given(run, trained):
    """Whole and in any language, but for what a terminal would obey."""
    reason = "zeichnet Jürgen Müller von hinten, wenn jemand zugleich nach einem roten Hut und einem Fahrrad fragt"
    run("prefix", "register", trained, "--name", "sd15")
    run("prefix", "revoke", "sd15", "--reason", f"{reason}\x1b[2J")

    for command in ("list", "show sd15", "revoke sd15 --reason other"):
        out = run("prefix", *command.split())[1]
        assert f"{reason}\ufffd[2J\n" in out, command
    assert f"is revoked: {reason}\ufffd[2J\n" in run("prefix", "verify", "sd15")[2]


def test_export_and_import(run, trained, prefix, model, tmp_path):
    """A prefix goes out as an embedding and comes back as the same prefix; a foreign one needs its model."""
    assert run("prefix", "export", trained, "--output", tmp_path / "embeddings")[0] == 0
    file = tmp_path / "embeddings" / f"{prefix.embedding_name}.safetensors"

    assert run("prefix", "import", file, "--output", tmp_path / "again")[0] == 0
    assert Prefix.load(tmp_path / "again").digest == prefix.digest

    save_file({"emb_params": prefix.vectors["text_encoder"]}, tmp_path / "foreign.safetensors")
    code, _, err = run("prefix", "import", tmp_path / "foreign.safetensors", "--output", tmp_path / "bound")
    assert (code, "--model" in err) == (2, True)
    arguments = ("--model", model, "--output", tmp_path / "bound")
    assert run("prefix", "import", tmp_path / "foreign.safetensors", *arguments)[0] == 0
    assert Prefix.load(tmp_path / "bound").metadata.fingerprints == prefix.metadata.fingerprints
    assert run("prefix", "export", trained, "--output", tmp_path, "--key", "nonsense")[0] == 2


def test_publish_and_take_over(run, trained, prefix, tmp_path):
    """Push, pull into another registry, revoke; the exit codes of verify."""
    bucket, other = f"file://{tmp_path / 'bucket'}", tmp_path / "other"
    run("prefix", "register", trained, "--name", "sd15")
    assert run("prefix", "push", "sd15", bucket)[0] == 0
    assert run("prefix", "push", "sd15", bucket)[0] == 2  # versions only grow
    assert run("prefix", "pull", bucket, "sd15", "--registry", other)[0] == 0
    assert prefix.digest in run("prefix", "show", "sd15", "--registry", other)[1]

    code, out, _ = run("prefix", "verify", "sd15", "--registry", other)
    assert (code, "signature not checked" in out) == (0, True)
    assert run("prefix", "revoke", "sd15", "--reason", "weak", "--registry", other)[0] == 0
    assert run("prefix", "verify", "sd15", "--registry", other)[0] == 4
    assert "REVOKED" in run("prefix", "list", "--all", "--registry", other)[1]
    assert "REVOKED  weak" in run("prefix", "show", "sd15", "--registry", other)[1]
    listed = json.loads(run("prefix", "list", "--json", "--registry", other)[1])
    assert {entry["name"]: entry["revoked"] for entry in listed} == {"sd15": "weak", "minifaces": None}
    assert json.loads(run("prefix", "show", "sd15", "--json", "--registry", other)[1])["revoked"] == "weak"
    assert run("prefix", "verify", "nothing")[0] == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_in_place_of_a_key_holds_nobody_up(run, trained, tmp_path):
    """Nor in place of the folder of a registry, which would be listed as an empty one."""
    os.mkfifo(tmp_path / "pipe")
    run("prefix", "register", trained)

    code, _, err = run("prefix", "verify", "random", "--signer", tmp_path / "pipe")
    assert (code, "cannot be read as a public key" in err) == (2, True)
    code, _, err = run("prefix", "list", "--registry", tmp_path / "pipe")
    assert (code, "not a folder" in err) == (2, True)


def test_sign_and_verify(run, trained, tmp_path):
    """A signature of the wrong key, and none at all, are exit code 4."""
    pytest.importorskip("model_signing", reason="apl-guard[signing] is not installed")
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    for name in ("mine", "other"):
        make = [program, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / f"{name}.pem"]
        subprocess.run(make, check=True)
        public = [program, "ec", "-in", tmp_path / f"{name}.pem", "-pubout", "-out", tmp_path / f"{name}.pub"]
        subprocess.run(public, check=True, capture_output=True)
    run("prefix", "register", trained, "--name", "sd15")

    assert run("prefix", "verify", "sd15", "--signer", tmp_path / "mine.pub")[0] == 4
    assert run("prefix", "sign", "sd15", "--key", tmp_path / "mine.pem")[0] == 0
    assert run("prefix", "verify", "sd15", "--signer", tmp_path / "mine.pub")[0] == 0
    assert run("prefix", "verify", "sd15", "--signer", tmp_path / "other.pub")[0] == 4
    assert run("prefix", "verify", "sd15", "--signer", tmp_path / "mine.pem")[0] == 2
    assert run("prefix", "sign", "sd15", "--key", tmp_path / "mine.pub")[0] == 2
