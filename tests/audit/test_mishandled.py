"""What officers and scripts do to a log in good faith: they remove it, look at it, and copy it while it is in use."""

import contextlib
import fcntl
import shutil
import threading
import time

import pytest
from logs import call, make_log, records, wait_for

from apl_guard import AuditUnavailable
from apl_guard.audit import locks
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.segment_files import is_alive, writers_in
from apl_guard.audit.verify import Verdict, verify_log


class TestRemovedWhileInUse:
    """What is written into a file that was removed is gone with it, however well the disk takes it."""

    def test_there_is_no_image_from_then_on(self, folders):
        """Rather than a minute of calls that nobody will ever read."""
        log, witness = folders
        durable = DurableLog(log, [witness])
        call(durable, 0)
        shutil.rmtree(log)

        for number in (1, 2):
            with pytest.raises(AuditUnavailable, match="a segment was removed while the log was in use"):
                call(durable, number)

    @pytest.mark.parametrize("segment_bytes", [1, 1 << 20], ids=["each record in a file of its own", "one file"])
    def test_a_log_that_was_begun_in_its_place_stays_clean(self, folders, segment_bytes):
        """The process that wrote to the old one writes nothing into it, not even as it ends."""
        log, witness = folders
        old = DurableLog(log, [witness], options=LogOptions(segment_bytes=segment_bytes))
        call(old, 0)
        shutil.rmtree(log)
        with DurableLog(log, [witness]) as new:
            call(new, 1)
            with pytest.raises(AuditUnavailable):
                call(old, 2)
            old.close()
            call(new, 3)

        assert len(writers_in(log / "segments")) == 1
        assert [r["decision_id"][-1] for r in records(log) if r["event"] == "guard.outcome"] == ["1", "3"]
        assert verify_log(log, [witness]).verdict is Verdict.VALID


class TestLookedAtWhileInUse:
    """Who verifies asks whether a writer lives. That must not look like a writer, nor be in the way of one."""

    def test_two_who_verify_do_not_take_each_other_for_the_writer(self, folders):
        """Nor does the next process, which records and closes what a dead one left."""
        log, witness = folders
        dead = DurableLog(log, [witness])
        call(dead, 0)
        dead.leave()  # as if its process had died
        ((writer, numbers),) = writers_in(log / "segments").items()
        with (log / "segments" / f"{writer}.000000.jsonl").open("rb") as looking:
            assert not locks.is_locked(looking.fileno())  # and holds it while it looks

            assert not is_alive(log / "segments", writer, numbers)
            DurableLog(log, [witness]).close()

        assert [r["dead_writer"] for r in records(log) if r["event"] == "audit.recovery"] == [writer]

    def test_a_log_is_opened_while_somebody_looks_at_its_first_segment(self, folders, monkeypatch):
        """It is waited for, since it takes but a moment."""
        log, witness = folders
        try_lock, looking = locks.try_lock, []

        def look(handle):
            if not looking:
                (segment,) = (log / "segments").iterdir()
                looking.append(segment.open("rb"))
                fcntl.flock(looking[0], fcntl.LOCK_SH)
            else:
                looking[0].close()
            return try_lock(handle)

        monkeypatch.setattr("apl_guard.audit.segments.locks.try_lock", look)
        monkeypatch.setattr("apl_guard.audit.locks._wait_for", lambda handle: fcntl.flock(handle, fcntl.LOCK_EX))
        with DurableLog(log, [witness]) as durable:
            call(durable, 0)

        assert looking[0].closed
        assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_a_witness_that_is_not_where_it_was_is_said_once(folders, caplog):
    """Such as a mount that is away: the log goes on, and its copy on the local disk is worth little."""
    log, witness = folders
    for there, said in ((witness, 0), (witness, 0), (log.with_name("unmounted"), 1), (log.with_name("unmounted"), 0)):
        caplog.clear()
        with DurableLog(log, [there]) as durable:
            call(durable, 0)
        assert [str(there) in record.getMessage() for record in caplog.records] == [True] * said


def test_a_seal_that_fails_while_nobody_calls_is_made_up_for(folders):
    """Rather than after the next record, which the guard refuses until there is a checkpoint."""
    log, witness = folders
    make_log(log, witness, calls=1, writers=1)
    options = LogOptions(max_exposure_seconds=0.3, checkpoint_seconds=0.05)
    with DurableLog(log, [witness], options=options) as durable:
        call(durable, 0)
        assert wait_for(lambda: not durable._core._has_some)
        time.sleep(0.3)
        gone = witness.rename(witness.with_name("gone"))
        witness.write_text("nothing that a checkpoint goes to")
        with pytest.raises(AuditUnavailable, match="no checkpoint"):
            durable.seal()
        assert durable._core._unsealed_since is not None
        witness.unlink()
        gone.rename(witness)
        assert wait_for(lambda: durable._core._unsealed_since is None)
        call(durable, 1)

    assert verify_log(log, [witness]).verdict is Verdict.VALID


@pytest.mark.parametrize("fails", [True, False])
def test_what_no_checkpoint_covers_counts_as_unsealed_whenever_it_came(folders, monkeypatch, fails):
    """Be it that a seal fails where no record is new, or that a record comes while a seal is made."""
    log, witness = folders
    options = LogOptions(max_exposure_seconds=0, checkpoint_seconds=1e6, heartbeat_seconds=1e6)

    def write(number):
        durable.append("guard.decision", {"decision_id": number}, decision=number)

    def seal(*arguments, **options):
        if fails:
            raise OSError(110, "Connection timed out")
        add(*arguments, **options)
        write("meanwhile")

    with DurableLog(log, [witness], options=options) as durable:
        add = durable._core._checkpoints.add
        with monkeypatch.context() as patched:
            patched.setattr(durable._core._checkpoints, "add", seal)
            with pytest.raises(AuditUnavailable, match="timed out") if fails else contextlib.nullcontext():
                durable.seal()
        with pytest.raises(AuditUnavailable, match="no checkpoint for 0 seconds"):
            write("too late")
        durable.seal()
        write("after")

    assert [r["decision_id"] for r in records(log) if r["event"] == "guard.decision"][-1] == "after"
    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_nothing_is_written_while_a_late_seal_is_tried_again(folders, monkeypatch):
    """A witness on a slow network fails after seconds, each time; calls must not pass in between."""
    log, witness = folders
    options = LogOptions(max_exposure_seconds=0.1, checkpoint_seconds=0.01)
    fails, tries = threading.Semaphore(0), []

    def fail_slowly(*_, **__):
        tries.append(1)
        fails.acquire()
        raise OSError(110, "Connection timed out")

    with DurableLog(log, [witness], options=options) as durable:
        with monkeypatch.context() as patched:
            patched.setattr(durable._core._checkpoints, "add", fail_slowly)
            call(durable, 0)
            assert wait_for(lambda: len(tries) == 1)
            time.sleep(0.2)
            fails.release()
            assert wait_for(lambda: len(tries) == 2)
            try:
                with pytest.raises(AuditUnavailable, match="no checkpoint"):
                    call(durable, 1)
            finally:
                fails.release(1000)
        assert wait_for(lambda: durable._core._unsealed_since is None)
        call(durable, 2)

    assert verify_log(log, [witness]).verdict is Verdict.VALID


class TestMixedUp:
    """Folders of two logs merged, files left out, and the wrong folder named. A line says what to do."""

    def test_segments_of_another_log_are_named_and_not_adopted(self, folders, run):
        """A guard that starts records, seals and closes what dead processes left, but only of its own log."""
        log, witness = folders
        other = log.with_name("other")
        make_log(log, witness, calls=3, writers=1)
        make_log(other, witness, calls=3, writers=1)
        shutil.copytree(other / "segments", log / "segments", dirs_exist_ok=True)

        for _ in range(2):
            code, out, _ = run("verify", log, "--witness", witness)
            assert code == 1
            assert "take its segments away" in out
            DurableLog(log, [witness]).close()
        for path in (other / "segments").iterdir():
            (log / "segments" / path.name).unlink()
        assert run("verify", log, "--witness", witness)[0] == 0
        assert [r["event"] for r in records(log) if r["event"] == "audit.recovery"] == []

    def test_a_guard_does_not_begin_anew_where_all_checkpoints_are_gone(self, folders):
        """Its key is past the first epoch, so there were some, and what it signs now could not be verified."""
        log, witness = folders
        make_log(log, witness, calls=8, writers=1)
        (log / "checkpoints.jsonl").unlink()

        with pytest.raises(AuditUnavailable, match=r"there is no checkpoint: checkpoints are missing"):
            DurableLog(log)
        assert not (log / "checkpoints.jsonl").exists()

    @pytest.mark.parametrize("change", [lambda content: b"x" + content[1:], lambda content: content[:-1]])
    def test_public_keys_that_are_damaged_at_the_witness_are_noted(self, folders, run, change):
        """Nothing of the log is wrong, but nobody could put its keys back from there. Whole ones are not mentioned."""
        log, witness = folders
        make_log(log, witness, calls=3, writers=1)
        (copy,) = witness.glob("*/keys-000000.pub")
        whole = copy.read_bytes()
        copy.write_bytes(change(whole))

        code, out, _ = run("verify", log, "--witness", witness)
        assert code == 0
        assert " ".join(f"{copy} is damaged".split()) in " ".join(out.split())

        copy.write_bytes(whole)
        assert "damaged" not in run("verify", log, "--witness", witness)[1]

    def test_public_keys_that_are_missing_are_at_the_witness(self, folders, run):
        """Verification says so, and so does a guard that starts."""
        log, witness = folders
        make_log(log, witness, calls=3, writers=1)
        for path in log.glob("keys-*.pub"):
            path.unlink()

        code, out, _ = run("verify", log, "--witness", witness)
        assert code == 1
        assert "missing or changed; the witness has them: keys-000000.pub" in out
        with pytest.raises(AuditUnavailable, match="put them back from a witness"):
            DurableLog(log)
        for path in next(witness.iterdir()).glob("keys-*.pub"):
            shutil.copy(path, log)
        DurableLog(log, [witness]).close()
        assert run("verify", log, "--witness", witness)[0] == 0

    def test_a_witness_in_the_place_of_the_log_is_told_from_a_log_that_lost_its_records(self, folders, run):
        """It holds no segments; and the witness of another log does not know this one."""
        log, witness = folders
        make_log(log, witness, calls=3, writers=1)
        make_log(log.with_name("other"), witness.with_name("another"), calls=3, writers=1)

        code, out, _ = run("verify", next(witness.iterdir()))
        assert code == 1
        assert "if this is a witness, verify the log and name this with --witness" in out
        code, out, _ = run("verify", log, "--witness", witness.with_name("another"))
        assert code == 1
        assert "one of them belongs to something else" in out
        assert "other logs" not in out
