"""Signed prefixes: who publishes them, and what becomes of those that nobody signed."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError
from trusted import draw, model_signing, needs_signing, with_prefix

from apl_guard import Guard, InvalidInput, PrefixInvalid, PrefixRegistry, PrefixSignatureInvalid, PrefixUnsigned
from apl_guard.policy.acceptance import Acceptance
from apl_guard.registry.signing import sign_folder
from apl_guard.testing import random_prefix


@needs_signing
class TestSignatures:
    """A policy that names signers accepts what one of them signed, and nothing else."""

    def test_signed_by_the_publisher(self, shared_pipe, publish, keys, policy):
        """The image is made."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        assert draw(Guard(shared_pipe, policy)).images

    def test_unsigned(self, shared_pipe, publish, policy, drawn):
        """The command that signs is in the message."""
        publish(1)

        with pytest.raises(PrefixUnsigned, match="apl-guard prefix sign"):
            Guard(shared_pipe, policy)
        assert drawn == []

    def test_signed_by_a_stranger(self, shared_pipe, publish, keys, policy, drawn):
        """Although the signature is good as such."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["stranger"][0])

        with pytest.raises(PrefixSignatureInvalid):
            Guard(shared_pipe, policy)
        assert drawn == []

    @pytest.mark.parametrize("scheme", ["", "file://"])
    def test_signed_after_it_was_pushed(self, shared_pipe, publish, keys, policy, tmp_path, scheme):
        """The next push brings the signature along, and a pull brings it home."""
        target = f"{scheme}{tmp_path / 'bucket'}"
        PrefixRegistry().publish(publish(1), target)
        PrefixRegistry(tmp_path / "home").adopt(PrefixRegistry(target).verify("sd15"))
        signed = PrefixRegistry().sign("sd15", keys["publisher"][0])

        PrefixRegistry().publish(signed, target)
        there = PrefixRegistry(target, refresh_after=0)
        assert draw(Guard(shared_pipe, policy, registry=there)).images
        there.refresh()
        assert PrefixRegistry(tmp_path / "home").adopt(there.verify("sd15")).signature == signed.signature

    @pytest.mark.parametrize("scheme", ["", "file://"])
    def test_signed_anew_by_another_key(self, shared_pipe, publish, keys, policy, tmp_path, scheme):
        """A push puts the new signature in place of the old one; readers and copies take it."""
        target = f"{scheme}{tmp_path / 'bucket'}"
        publish(1)
        PrefixRegistry().publish(PrefixRegistry().sign("sd15", keys["stranger"][0]), target)
        there = PrefixRegistry(target, refresh_after=0)
        PrefixRegistry(tmp_path / "home").adopt(there.verify("sd15"))
        with pytest.raises(PrefixSignatureInvalid):
            Guard(shared_pipe, policy, registry=there)
        signed = PrefixRegistry().sign("sd15", keys["publisher"][0])

        PrefixRegistry().publish(signed, target)
        assert draw(Guard(shared_pipe, policy, registry=there)).images
        assert PrefixRegistry(tmp_path / "home").adopt(there.verify("sd15")).signature == signed.signature

    def test_one_of_several_signers_is_enough(self, shared_pipe, publish, keys):
        """As while a key is replaced by another."""
        publish(1)
        PrefixRegistry().sign("sd15", keys["stranger"][0])

        Guard(shared_pipe, with_prefix(signers=[keys["publisher"][1], keys["stranger"][1]]))

    def test_another_prefix_under_a_good_signature(self, shared_pipe, publish, keys, policy):
        """With an entry that fits it: only the signature tells."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        signature = (path / "model.sig").read_bytes()
        other = random_prefix(shared_pipe, n=4, seed=9, name="sd15")
        said = json.loads((path / "entry.json").read_text())
        (path / "prefix.safetensors").write_bytes(other.to_bytes())
        (path / "entry.json").write_text(json.dumps(said | {"digest": other.digest}))
        assert PrefixRegistry().list()[0].problem is None

        with pytest.raises(PrefixSignatureInvalid, match="mismatch"):
            Guard(shared_pipe, policy)
        assert (path / "model.sig").read_bytes() == signature

    @pytest.mark.parametrize("file", ["prefix.safetensors", "entry.json", "card.md", "model.sig"])
    def test_every_file_is_covered(self, publish, keys, file):
        """One more byte in any of them is noticed, by the digest or by the signature."""
        registry, path = PrefixRegistry(), publish(1).path
        registry.sign("sd15", keys["publisher"][0])
        content = (path / file).read_bytes()
        accepts = Acceptance(signers=(keys["publisher"][1],))
        registry.check(registry.list()[0], accepts)

        if file == "model.sig":
            bundle = json.loads(content)
            envelope = bundle["dsseEnvelope"]
            made = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
            made[-1] ^= 1
            envelope["signatures"][0]["sig"] = base64.b64encode(made).decode()
            (path / file).write_text(json.dumps(bundle))
        else:
            (path / file).write_bytes(content + b" ")

        with pytest.raises((PrefixSignatureInvalid, PrefixInvalid)):
            registry.check(registry.list()[0], accepts)

    def test_a_signature_that_leaves_a_file_out(self, publish, keys, tmp_path):
        """The format lets a signer do that, and the file could then say anything."""
        entry = publish(1)
        leaves_out = model_signing.hashing.Config().set_ignored_paths(paths=["card.md"])
        signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys["publisher"][0])
        signing.set_hashing_config(leaves_out).sign(entry.path, entry.path / "model.sig")
        registry = PrefixRegistry()

        with pytest.raises(PrefixSignatureInvalid, match="it covers"):
            registry.check(registry.list()[0], Acceptance(signers=(keys["publisher"][1],)))

    @pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[1]", b"garbage", b"\xff", b"{" * 9000])
    def test_signatures_that_are_none(self, publish, keys, content):
        """Whatever it is, the error is the typed one."""
        path = publish(1).path
        (path / "model.sig").write_bytes(content)
        registry = PrefixRegistry()

        with pytest.raises(PrefixSignatureInvalid):
            registry.check(registry.list()[0], Acceptance(signers=(keys["publisher"][1],)))

    def test_a_version_passed_off_as_a_later_one(self, publish, keys):
        """Version 1, signed, copied to where version 2 belongs."""
        path = publish(1).path
        registry = PrefixRegistry()
        registry.sign("sd15", keys["publisher"][0])
        shutil.copytree(path, path.with_name("2"))

        entry = registry.list()[0]
        assert "is about version 1" in entry.problem

    def test_a_signature_over_a_folder_that_does_not_say_its_version(self, shared_pipe, prefix, keys, policy, tmp_path):
        """Of the publisher, and good as such: an old version could be passed off by it as the newest."""
        folder = prefix.save(tmp_path / "bare")
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        sign_folder(folder, files, keys["publisher"][0])
        assert "entry.json" not in files

        with pytest.raises(PrefixSignatureInvalid, match=r"signed without entry\.json"):
            Guard(shared_pipe, policy, prefix=folder)

    def test_a_folder_given_by_hand_must_be_signed_too(self, shared_pipe, publish, keys, policy, prefix):
        """By its path; a prefix in memory cannot be."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])

        Guard(shared_pipe, policy, prefix=path)
        with pytest.raises(PrefixUnsigned):
            Guard(shared_pipe, policy, prefix=prefix)
        with pytest.raises(PrefixUnsigned):
            Guard(shared_pipe, policy, prefix=path / "prefix.safetensors")

    def test_a_signature_that_is_removed_while_the_service_runs(self, shared_pipe, publish, keys, policy, drawn):
        """The guard looks again on each call."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        guard = Guard(shared_pipe, policy)
        (path / "model.sig").unlink()

        with pytest.raises(PrefixUnsigned):
            draw(guard)
        assert drawn == []

    def test_the_signature_is_one_of_model_signing(self, publish, keys, tmp_path):
        """Its own command line verifies the folder."""
        path = publish(1).path
        PrefixRegistry().sign("sd15", keys["publisher"][0])
        key = tmp_path / "publisher.pub"
        key.write_text(keys["publisher"][1])
        command = ["verify", "key", path, "--signature", path / "model.sig", "--public_key", key]

        program = shutil.which("model_signing", path=str(Path(os.sys.executable).parent))
        ended = subprocess.run(
            [program, *command, "--ignore-paths", path / "model.sig"], capture_output=True, text=True
        )

        assert ended.returncode == 0, ended.stdout + ended.stderr

    def test_keys_that_cannot_be_used(self, publish, tmp_path):
        """For signing, and in a policy."""
        publish(1)
        (tmp_path / "no.pem").write_text("hello")
        for path in (tmp_path / "no.pem", tmp_path / "nothing.pem"):
            with pytest.raises(InvalidInput, match=r"\.pem"):
                PrefixRegistry().sign("sd15", path)
        public = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"
        secret = public.replace("PUBLIC", "PRIVATE")  # would stand in every copy of the policy
        for text in ("", "hello", "x" * 20_000, public.replace("MFkw", "*"), public + "\n" * 10_000, secret):
            with pytest.raises(ValidationError, match="signers"):
                Acceptance(signers=(text,))
        assert Acceptance(signers=(f" {public}\n",)).signers
