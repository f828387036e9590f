"""The keys of a log where they are missing, wrong, from another log, or put back from a copy."""

import os
import shutil

import instant
import pytest
from logs import call, make_log

from apl_guard import AuditUnavailable, Guard
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.verify import Verdict, verify_log


class TestKeys:
    """Missing, wrong, from another log, put back from a copy. A start that is refused, again and again where a service
    is restarted by itself, leaves the log as valid as it was."""

    @pytest.fixture
    def log(self, folders, prefix):
        log, witness = folders
        guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness)
        guard("a cat")
        guard.close()
        yield log
        assert verify_log(log, [witness]).verdict is Verdict.VALID

    def reopen(self, log):
        AuditLog(log, witness=log.parent / "witness").close()

    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_missing(self, log, name):
        """The message says what to do; no new key takes its place."""
        (log / "keys" / name).unlink()

        with pytest.raises(AuditUnavailable, match="backup"):
            self.reopen(log)

    @pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"\xff" * 9000])
    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_damaged(self, log, name, content):
        """As missing."""
        (log / "keys" / name).write_bytes(content)

        with pytest.raises(AuditUnavailable, match="key"):
            self.reopen(log)

    def test_of_another_log(self, log, tmp_path):
        """What it would sign could never be verified."""
        AuditLog(tmp_path / "other").close()
        (log / "keys" / "seal.key").write_bytes((tmp_path / "other" / "keys" / "seal.key").read_bytes())

        with pytest.raises(AuditUnavailable, match="another log"):
            self.reopen(log)

    def test_read_only_folder(self, log):
        """Refused at the start."""
        if os.geteuid() == 0:
            (log / ".lock").unlink()
            (log / ".lock").mkdir()  # root may write anywhere, but not into a folder as if it were a file
        else:
            log.chmod(0o500)

        with pytest.raises(AuditUnavailable, match="cannot be used"):
            self.reopen(log)
        log.chmod(0o700)


def test_a_new_log_does_not_take_the_keys_of_another(folders, tmp_path):
    """Such as that of the month before, with `keys=` at one place: its key is the only one, and it is still in use."""
    log, witness = folders
    keys = tmp_path / "keys"
    with DurableLog(log, [witness], keys) as durable:
        call(durable, 0)
        before = (keys / "seal.key").read_bytes()
        with pytest.raises(AuditUnavailable, match="give each log a folder of keys of its own"):
            DurableLog(tmp_path / "next", [witness], keys)
        assert not (tmp_path / "next" / LOG_FILE).exists()
        assert (keys / "seal.key").read_bytes() == before
        call(durable, 1)
        durable.seal()
    assert verify_log(log, [witness]).verdict is Verdict.VALID
    DurableLog(tmp_path / "next", [witness], tmp_path / "other keys").close()


def test_a_start_that_failed_before_the_log_was_begun_is_made_up_for(folders):
    """The key that it left was never used, and its seed is not left beside the new one."""
    log, witness = folders
    DurableLog(log, [witness]).close()
    shutil.rmtree(witness)
    old = (log / "keys" / "seal.key").read_bytes()
    for name in (LOG_FILE, "checkpoints.jsonl", *(f"segments/{path.name}" for path in (log / "segments").iterdir())):
        (log / name).unlink()
    with (log / "keys" / "seal.key").open("rb") as there:
        with DurableLog(log, [witness]) as durable:
            call(durable, 0)
        assert there.read() == bytes(len(old))  # overwritten before it was removed

    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_a_witness_receives_the_keys_that_count(folders, monkeypatch):
    """Those of a generation that was prepared, and not announced before the process died, are made anew."""
    log, witness = folders
    options = LogOptions(epochs=2, epoch_seconds=0, checkpoint_seconds=1e6)
    durable, append = DurableLog(log, [witness], options=options), disk.append_through

    def fail(path, content):
        if path.parent == log and b'"next":"' in content:
            raise OSError(28, "No space left on device")
        append(path, content)

    def seal_on():
        for number in range(9):
            call(durable, number)
            durable.seal()

    with monkeypatch.context() as patch:
        patch.setattr(disk, "append_through", fail)
        with pytest.raises(AuditUnavailable, match="No space left"):
            seal_on()
    durable.leave()  # as if its process had died
    make_log(log, witness, calls=40, writers=1)

    kept = next(witness.iterdir())
    names = sorted(path.name for path in log.glob("keys-*.pub"))
    assert len(names) > 2
    for name in names:
        assert (kept / name).read_bytes() == (log / name).read_bytes(), name
        (log / name).unlink()
    report = verify_log(log, [witness])
    assert all("are missing or changed" in finding for finding in report.findings)  # and those of the witness fit


def test_a_seed_that_is_not_gone_for_certain_is_overwritten_again(folders, monkeypatch):
    """A disk that failed to take the zeros may hold it still, whatever is read from there until it is written anew."""
    log, _ = folders
    durable = DurableLog(log, options=LogOptions(epoch_seconds=0, checkpoint_seconds=1e6))
    durable.seal()
    path, fsync, wiped = log / "keys" / "seal.key", os.fsync, []

    def sync(handle):
        if os.path.samestat(os.fstat(handle), path.stat()) and path.read_bytes().count(bytes(4096)):
            wiped.append(handle)
            if len(wiped) == 1:
                raise OSError(5, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(AuditUnavailable, match="Input/output error"):
        durable.seal()
    monkeypatch.setattr("apl_guard.audit.checkpoint_log.CheckpointLog._is_over", lambda *_: False)
    durable.seal()
    assert len(wiped) == 2
    durable.seal()
    assert len(wiped) == 2
    durable.close()
