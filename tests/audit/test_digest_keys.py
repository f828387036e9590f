"""The digest key is exchanged while guards run; old records are found as long as the old key is kept."""

import json
import os
import subprocess
import sys

import instant
import pytest

from apl_guard import AuditUnavailable, Guard, InvalidInput
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.digest_keys import DigestKeys
from apl_guard.audit.keyed_digests import key_id
from apl_guard.audit.reading import read_log
from apl_guard.audit.rotate import rotate
from apl_guard.audit.verify import Verdict, verify_log


@pytest.fixture
def guard(folders, prefix):
    """A guard that keeps texts, encrypted for their subject."""
    log, witness = folders
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        yield Guard(instant.Pipe(), prefix=prefix, audit=audit)


def decisions(log):
    return [found.fields for found in read_log(log) if found.fields["event"] == "guard.decision"]


def test_a_rotated_key_is_in_use_at_once_and_the_old_records_are_found(guard, folders, run):
    """By the same prompt, in any spelling that looks like it, and by the same subject, under either key."""
    log, witness = folders
    with guard.context(subject="account-7"):
        guard("a photo of Mara Voss")
        code, out, _ = run("keys", "rotate", log, "--witness", witness)
        assert code == 0
        guard("a photo of Mara Voss")
    guard("a cat")

    old, new, other = decisions(log)
    assert new["key_id"] == other["key_id"] != old["key_id"]
    assert new["key_id"] in out
    assert old["text"]["prompt"][0]["hmac"] != new["text"]["prompt"][0]["hmac"]
    assert old["subject"] != new["subject"]
    (rotation,) = [found.fields for found in read_log(log) if found.fields["event"] == "audit.rotation"]
    assert (rotation["before"], rotation["after"]) == (old["key_id"], new["key_id"])
    assert json.loads(run("keys", "list", log, "--json")[1]) == {"in_use": new["key_id"], "kept": [old["key_id"]]}

    for prompt in ("a photo of Mara Voss", "A  PHOTO of m\u0430ra voss"):
        assert run("query", log, "--prompt", prompt)[1].count("guard.decision") == 2
    assert run("query", log, "--prompt", "a photo of Mara Vos")[1] == "nothing found\n"
    assert run("query", log, "--subject", "account-7")[1].count("guard.decision") == 2
    assert run("query", log, "--subject", "account-7", "--prompt", "a cat")[1] == "nothing found\n"
    for each in (old, new):
        assert json.loads(run("reveal", log, each["decision_id"])[1]) == {"prompt": ["a photo of Mara Voss"]}
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_erasing_a_subject_reaches_what_was_recorded_under_every_key(guard, folders, run):
    """Under the old one and under the one in use; nothing is left to read."""
    log, witness = folders
    with guard.context(subject="account-7"):
        guard("a photo of Mara Voss")
        rotate(log, witnesses=[witness])
        guard("a photo of Mara Voss")

    code, out, _ = run("erase", log, "--subject", "account-7", "--witness", witness)
    assert (code, out.count("destroyed key")) == (0, 2)
    for each in decisions(log):
        assert "erased" in run("reveal", log, each["decision_id"])[1]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_a_destroyed_key_leaves_nothing_to_look_for(guard, folders, run, caplog):
    """Not even its bytes under another name; its records stay and verify. The one in use cannot be destroyed. Nobody is
    told that nobody asked, or that a text is gone which is still there."""
    log, witness = folders
    with guard.context(subject="account-7"):
        guard("a photo of Mara Voss")
    (first,) = decisions(log)
    stays = open(log / "keys" / "digest.key", "rb")  # noqa: SIM115 - sees the file after it has lost its name
    assert run("keys", "destroy", log, first["key_id"])[0] == 2
    rotate(log, witnesses=[witness])

    assert run("keys", "destroy", log, first["key_id"], "--witness", witness)[0] == 0
    with stays:
        assert stays.read() == bytes(32)
    for option, value in (("--prompt", "a photo of Mara Voss"), ("--subject", "account-7")):
        code, out, errors = run("query", log, option, value)
        assert (code, out) == (0, "nothing found\n")
        assert f"under the digest key {first['key_id']}, which is not kept, is not in this answer" in errors
    code, out, errors = run("erase", log, "--subject", "account-7")
    assert (code, out, "is reached only by a decision" in errors) == (2, "", True)
    with guard.context(subject="account-7"):
        guard("a photo of Mara Voss")
    caplog.clear()
    assert run("erase", log, "--subject", "account-7")[1].count("destroyed key") == 1
    assert "is reached only by a decision" in caplog.text
    assert "Mara" in run("reveal", log, first["decision_id"])[1]
    assert run("erase", log, "--decision", first["decision_id"])[0::2] == (0, "")
    assert "erased" in run("reveal", log, first["decision_id"])[1]
    assert run("keys", "destroy", log, first["key_id"])[0] == 2
    assert run("keys", "list", log)[1].count("\n") == 1
    (gone,) = [found.fields for found in read_log(log) if found.fields["event"] == "audit.key_destruction"]
    assert gone["key_id"] == first["key_id"]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_another_process_takes_the_new_key_with_its_next_record(folders):
    """It holds the log open all the time and is told nothing."""
    log, _ = folders
    program = (
        "import sys; from pathlib import Path\n"
        "from apl_guard.audit.durable import DurableLog; from apl_guard.audit.keyed_digests import key_id\n"
        "log = DurableLog(Path(sys.argv[1]))\n"
        "for _ in sys.stdin:\n"
        "    print(key_id(log.digest_key), flush=True)\n"
        "log.close()\n"
    )
    command = [sys.executable, "-c", program, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def ask():
            other.stdin.write("\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        before = ask()
        assert rotate(log)[0] == before
        assert ask() == key_id(DigestKeys.of_log(log).in_use) != before
        other.stdin.close()
    assert other.returncode == 0


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_crash_in_the_middle_leaves_one_key_in_use(folders, monkeypatch, call):
    """The old one, whole; and the next attempt succeeds."""
    log, _ = folders
    AuditLog(log).close()
    before = DigestKeys.of_log(log).in_use

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises((OSError, AuditUnavailable)):
            rotate(log)
    assert DigestKeys.of_log(log).in_use == before
    rotate(log)
    assert list(DigestKeys.of_log(log).kept().values())[1] == before


def test_a_rotation_that_cannot_be_recorded_changes_nothing(folders, monkeypatch):
    """Or digests would be under a key that no record knows."""
    log, _ = folders
    AuditLog(log).close()
    before, write = DigestKeys.of_log(log).kept(), disk.write_all

    def fail(handle, content):
        if b'"audit.rotation"' in content:
            raise OSError(28, "No space left on device")
        write(handle, content)

    monkeypatch.setattr(disk, "write_all", fail)
    with pytest.raises(AuditUnavailable, match="No space left"):
        rotate(log)
    assert DigestKeys.of_log(log).kept() == before


def test_two_at_once_change_the_key_once(folders):
    """The second sees that it was exchanged, and leaves it."""
    log, _ = folders
    AuditLog(log).close()
    keys = DigestKeys.of_log(log)
    before = keys.in_use
    rotate(log)

    with pytest.raises(InvalidInput, match="nothing was changed"):
        keys.exchange(before, bytes(32))
    assert len(keys.kept()) == 2


def test_without_the_key_there_is_no_image(guard, folders):
    """A guard that runs sees that it is gone, and a damaged or foreign one is no key."""
    log, _ = folders
    path = log / "keys" / "digest.key"
    guard("a cat")
    for wrong in (b"", bytes(31), bytes(33)):
        path.write_bytes(wrong)
        with pytest.raises(AuditUnavailable, match="expected 32"):
            guard("a cat")
    path.unlink()
    with pytest.raises(AuditUnavailable, match="cannot be read"):
        guard("a cat")
    path.write_bytes(bytes(32))
    path.chmod(0o644)
    with pytest.raises(AuditUnavailable, match="others can read"):
        guard("a cat")
    path.chmod(0o600)
    guard("a cat")
    (log / "keys" / "digest-0123456789abcdef.key").write_bytes(bytes(31) + b"1")
    (log / "keys" / "digest-0123456789abcdef.key").chmod(0o600)
    with pytest.raises(AuditUnavailable, match="its own name"):
        DigestKeys.of_log(log).kept()


def test_the_keys_of_another_log_are_told_apart(guard, folders, run, prefix, tmp_path):
    """Named by mistake, they find nothing, which is said, and no key of the other log is destroyed."""
    log, witness = folders
    other, subject = tmp_path / "other", ("--subject", "account-7")
    with guard.context(subject="account-7"):
        guard("a cat")
        with AuditLog(other, capture="encrypted") as audit, Guard(instant.Pipe(), prefix=prefix, audit=audit) as second:
            second("a cat")
    rotate(other)
    (ours,), (theirs,) = decisions(log), decisions(other)
    wrong = ("--keys", other / "keys")

    for asked in (("--prompt", "a cat"), subject):
        code, out, errors = run("query", log, *asked, *wrong)
        assert (code, out) == (0, "nothing found\n")
        assert f"{ours['key_id']}, which is not kept, is not in this answer" in errors
    for command in (("erase", log, *subject), ("keys", "destroy", log, theirs["key_id"])):
        code, _, errors = run(*command, "--witness", witness, *wrong)
        assert (code, f"expected {ours['key_id']}" in errors) == (2, True)
    assert json.loads(run("reveal", other, theirs["decision_id"])[1]) == {"prompt": ["a cat"]}
    assert run("query", other, *subject)[1].count("guard.decision") == 1


def test_records_under_a_key_that_was_put_in_place_by_hand(guard, folders, run):
    """Whoever asks is told of those under the key before."""
    log, _ = folders
    guard("a cat")
    (log / "keys" / "digest.key").write_bytes(bytes(32))
    guard("a cat")

    old, _ = decisions(log)
    _, out, errors = run("query", log, "--prompt", "a cat")
    assert out.count("guard.decision") == 1
    assert f"{old['key_id']}, which is not kept, is not in this answer" in errors
