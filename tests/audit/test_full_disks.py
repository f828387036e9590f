"""Disks that are full, cannot be written or are on another machine: no image without its records."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import instant
import pytest
from logs import call, counted, records, wait_for
from prometheus_client import CollectorRegistry

from apl_guard import AuditUnavailable, Guard
from apl_guard.audit import AuditLog, disk, locks
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.verify import Verdict, verify_log


class TestFullDisk:
    """A real one, of a few hundred kilobytes."""

    @pytest.fixture
    def small(self, tmp_path):
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("needs the right to mount a small file system")
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_no_image_is_released_and_none_is_missing_from_the_log(self, small, prefix, tmp_path):
        """Full, the guard refuses; with room again it goes on and says what is missing."""
        (small / "ballast").write_bytes(bytes(60_000))
        log, witness = small / "log", tmp_path / "witness"
        registry, pipe = CollectorRegistry(), instant.Pipe()
        guard = Guard(pipe, prefix=prefix, audit=log, audit_witness=witness, metrics_registry=registry)
        released, refused, messages = 0, 0, set()
        while refused < 20:
            try:
                guard("a cat")
                released += 1
            except AuditUnavailable as error:
                messages.add(str(error).partition("(")[2].partition(")")[0])
                refused += 1

        assert messages == {"No space left on device"}
        assert released > 0
        passed = [r for r in records(log) if r.get("result") == "passed"]
        assert len(passed) == released == counted(registry)["passed"]
        assert counted(registry)["failed"] == refused

        (small / "ballast").unlink()
        guard("a cat")
        gaps = [r for r in records(log) if r["event"] == "audit.gap"]
        assert sum(r["refused"] for r in gaps) == refused
        guard.close()
        assert verify_log(log, [witness]).verdict == Verdict.VALID

    def test_a_full_disk_of_a_witness_is_named_before_the_guard_stops_and_in_the_error(
        self, small, prefix, tmp_path, caplog
    ):
        """Who is on call must not look for room on the disk of the log; while images still go out, the log says it."""
        witness = small / "witness"
        options = LogOptions(checkpoint_seconds=0.01, max_exposure_seconds=2)
        audit = AuditLog(tmp_path / "log", witness=witness, options=options)
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with (small / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        errors = []

        def refused():
            try:
                guard("a cat")
            except AuditUnavailable as error:
                errors.append(str(error))
            return bool(errors)

        said = f"({witness / audit.identity.log / 'checkpoints.jsonl'}: No space left on device)"
        assert wait_for(lambda: refused() or said in caplog.text)
        assert errors == []
        assert wait_for(refused)
        assert said in errors[0]
        (small / "ballast").unlink()
        assert wait_for(lambda: "are made again" in caplog.text)
        guard("a cat")
        audit.close()
        assert [said in each or "are made again" in each for each in caplog.messages] == [True, True]
        assert verify_log(tmp_path / "log", [witness]).verdict == Verdict.VALID

    def test_a_folder_without_room_is_refused_at_the_start(self, small, prefix, tmp_path):
        """Before the first call."""
        with (small / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))

        with pytest.raises(AuditUnavailable, match="No space left"):
            Guard(instant.Pipe(), prefix=prefix, audit=small / "log", audit_witness=tmp_path / "witness")


def test_a_file_size_limit_stops_images_too(prefix, folders):
    """Where a process may write nothing at all any more, as on a full disk."""
    import resource

    log, witness = folders
    pipe = instant.Pipe()
    guard = Guard(pipe, prefix=prefix, audit=log, audit_witness=witness)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(AuditUnavailable, match="no image"):
                guard("a cat")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert pipe.calls == 0
    guard("a cat")
    guard.close()
    assert [r["refused"] for r in records(log) if r["event"] == "audit.gap"] == [3]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_no_images_where_the_witness_fails_for_too_long(prefix, folders):
    """Nobody could tell later that records were changed; with the witness back it goes on."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    options = LogOptions(checkpoint_seconds=0.01, max_exposure_seconds=0.05)
    audit = AuditLog(log, witness=witness, options=options)
    pipe = instant.Pipe()
    guard = Guard(pipe, prefix=prefix, audit=audit)
    (witness / audit.identity.log).rename(witness / "away")
    (witness / audit.identity.log).write_text("in the way")

    def refused():
        try:
            guard("a cat")
        except AuditUnavailable as error:
            return "no checkpoint" in str(error)
        return False

    assert wait_for(refused)
    (witness / audit.identity.log).unlink()
    (witness / "away").rename(witness / audit.identity.log)
    assert wait_for(lambda: not refused())
    audit.close()
    assert verify_log(log, [witness]).verdict == Verdict.VALID


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt rw - tmpfs tmpfs rw
31 30 0:41 / /mnt/share rw shared:7 - nfs4 host:/share rw
32 31 0:42 / /mnt/share/local rw - xfs /dev/vdb rw
33 22 0:43 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
34 22 0:44 / /data rw - nfs host:/ rw
35 22 0:45 / /data rw - ext4 /dev/vdc rw
36 22 0:46 / /mnt/Prüfung\\134\u2028\x85 rw - cifs host:/ rw
damaged line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/log", None),
        ("/mnt/log", None),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/log/deep", "nfs4"),
        ("/mnt/shared", None),
        ("/mnt/share/local/log", None),
        ("/mnt/with space/log", "fuse.sshfs"),
        ("/data/log", None),
        ("/mnt/Prüfung\\\u2028\x85/log", "cifs"),
    ],
)
def test_network_file_systems_are_told_from_local_ones(path, kind):
    """By the innermost mount, of two on one place by the later."""
    assert disk.network_file_system(Path(path), MOUNTS) == kind


def test_a_log_on_a_network_file_system_is_refused(folders, monkeypatch):
    """At the start. A witness may be on one."""
    monkeypatch.setattr(disk, "network_file_system", lambda path: "nfs4")

    with pytest.raises(AuditUnavailable, match="local"):
        AuditLog(folders[0], witness=folders[1])


def test_a_lock_is_let_go_of_where_its_file_cannot_be_closed(tmp_path, monkeypatch):
    """The file may stay open then, with the lock; the next to ask would wait for ever."""
    close, left_open = os.close, []

    def failing(handle):
        left_open.append(handle)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(locks.os, "close", failing)
    with pytest.raises(OSError, match="Input/output"), locks.lock(tmp_path / ".lock"):
        pass
    monkeypatch.undo()

    other = os.open(tmp_path / ".lock", os.O_RDWR)
    assert locks.try_lock(other)
    for handle in (*left_open, other):
        close(handle)


def test_a_file_begun_in_vain_that_cannot_be_removed_is_passed_over(folders, monkeypatch):
    """The disk fails as a new file of records is begun, and again as it is removed: its record is written once more.

    Nothing says later that the log was tampered with, and no record is missing or there twice.
    """
    log, witness = folders
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_seconds=1e6, segment_bytes=1))
    sync, failing = disk.sync, [True]

    def sync_once(handle):
        sync(handle)
        if failing:
            failing.clear()
            raise OSError(5, "Input/output error")

    def unlink(_):
        raise OSError(5, "Input/output error")

    call(durable, 1)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", sync_once)
        patch.setattr(Path, "unlink", unlink)
        call(durable, 2)
    call(durable, 3)
    durable.close()

    report = verify_log(log, [witness])
    assert (report.verdict, report.findings) == (Verdict.VALID, [])
    decided = [record["decision_id"] for record in records(log) if record["event"] == "guard.decision"]
    assert decided == [f"{number:032x}" for number in (1, 2, 3)]


def test_a_disk_that_is_full_all_night_uses_up_no_numbers(folders, monkeypatch):
    """There are a million of them, and what stood in a segment beyond would be read by nobody."""
    log, witness = folders

    def full(*_):
        raise OSError(28, "No space left on device")

    with DurableLog(log, [witness]) as durable:
        call(durable, 1)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_all", full)
            for number in range(50):
                with pytest.raises(AuditUnavailable, match="No space left"):
                    call(durable, 100 + number)
        call(durable, 2)

    assert sorted(path.name[-12:] for path in (log / "segments").iterdir()) == ["000000.jsonl", "000001.jsonl"]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_a_writer_without_numbers_left_refuses_rather_than_writes_what_nobody_reads(folders):
    """Each record that was acknowledged is found."""
    log, witness = folders
    options = LogOptions(segment_bytes=1000)
    durable = DurableLog(log, [witness], options=options)
    durable._core.writer._segments.next_number = 999_999
    for number in range(5):
        with contextlib.suppress(AuditUnavailable):
            call(durable, number)
    with contextlib.suppress(AuditUnavailable):
        durable.close()

    report = verify_log(log, [witness])
    assert report.findings == []
    assert any("999999" in path.name for path in (log / "segments").iterdir())


def test_a_lock_that_another_process_never_lets_go_of_is_an_error(folders, monkeypatch):
    """Such as one that waits for its witness: no guard waits for it without end, and those that run say what is wrong.

    Records need no lock.
    """
    log, witness = folders
    running = DurableLog(log, [witness])
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(log / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.3)
        with pytest.raises(AuditUnavailable, match="another process has held the lock"):
            DurableLog(log, [witness])
        with pytest.raises(AuditUnavailable, match="another process has held the lock"):
            running.seal()
        call(running, 1)
        other.communicate(b"\n")
    running.seal()
    running.close()
    DurableLog(log, [witness]).close()
    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_many_that_wait_for_each_other_all_have_their_turn(tmp_path):
    """As a hundred workers that start together: all in all they wait for longer than one of them may hold the lock."""
    program = (
        "import sys, time; from pathlib import Path; from apl_guard.audit import locks; locks.PATIENCE_SECONDS = 1.0\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "with locks.lock(Path(sys.argv[1])): time.sleep(0.4)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()

    assert [child.returncode for child in children] == [0] * 8
