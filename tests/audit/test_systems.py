"""Other systems than Linux: what is promised there holds, or is refused in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from logs import call, records

from apl_guard import AuditUnavailable
from apl_guard.audit import locks
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.erase import erase
from apl_guard.audit.rotate import destroy_digest_key
from apl_guard.audit.verify import Verdict, verify_log

MACOS = """
import errno, fcntl, json, os, sys
from pathlib import Path

folder, share = map(Path, sys.argv[1:])
del os.fdatasync
fcntl.F_FULLFSYNC, sync, emptied, left = 51, os.fsync, set(), set()

def name(handle):
    return os.readlink(f"/proc/self/fd/{handle}").split("/.")[0]

def full(handle, what):
    assert what == fcntl.F_FULLFSYNC
    if Path(name(handle)).is_relative_to(share):
        raise OSError(errno.ENOTSUP, "Operation not supported")
    sync(handle)
    emptied.add(name(handle))

def fsync(handle):
    sync(handle)
    left.add(name(handle))

fcntl.fcntl, os.fsync = full, fsync

from apl_guard.audit.durable import DurableLog

with DurableLog(folder / "log", [folder / "witness"]) as log:
    log.append("guard.decision", {}, decision="1")
    log.seal()
print(json.dumps([sorted(emptied), sorted(left)]))
"""


def on_macos(folder, share):
    """Write a log as on macOS: which files were brought to the disk itself, and which only as far as its memory."""
    command = [sys.executable, "-c", MACOS, str(folder), str(share)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip().split("\n")[-1] if done.returncode else json.loads(done.stdout)


needs_names_of_handles = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux what a handle is of")


@needs_names_of_handles
def test_on_macos_records_and_keys_are_brought_out_of_the_memory_of_the_drive(tmp_path):
    """A plain fsync leaves them there, and a power cut would take acknowledged records along."""
    emptied, left = on_macos(tmp_path, tmp_path / "elsewhere")

    assert left == []
    for file in ("log", "log/checkpoints.jsonl", "log/keys", "log/segments"):
        assert str(tmp_path / file) in emptied
    assert any(file.endswith(".000000.jsonl") for file in emptied)


@needs_names_of_handles
def test_on_macos_a_file_system_that_cannot_promise_it_is_refused_for_the_log(tmp_path):
    """A share is one. A witness may be on it."""
    refused = on_macos(tmp_path, tmp_path / "log")
    assert "AuditUnavailable" in refused
    assert "put the log on a local disk" in refused

    emptied, left = on_macos(tmp_path, tmp_path / "witness")
    assert left
    assert all(Path(file).is_relative_to(tmp_path / "witness") for file in left)
    assert not any(Path(file).is_relative_to(tmp_path / "witness") for file in emptied)


@pytest.fixture
def without_locks(monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(locks, "HAS_LOCKS", False)
    monkeypatch.delattr(locks, "fcntl")


def test_a_log_is_verified_where_there_are_no_locks(folders, request):
    """Also one whose writer never closed it: whoever is given a copy may well sit in front of Windows."""
    log, witness = folders
    durable = DurableLog(log, [witness])
    call(durable, 0)
    durable.seal()
    durable.leave()  # as if its process had died
    before = verify_log(log, [witness])
    request.getfixturevalue("without_locks")

    assert verify_log(log, [witness]) == before
    assert before.verdict == Verdict.VALID


def test_nothing_is_destroyed_where_it_cannot_be_recorded_for_lack_of_locks(copy, without_locks):
    """The keys stay as they are, and the refusal says what to do instead."""
    log, witness = copy
    before, keys = records(log), {path: path.read_bytes() for path in (log / "keys").rglob("*") if path.is_file()}
    for act in (
        lambda: DurableLog(log, [witness]),
        lambda: erase(log, subject="account-7", witnesses=[witness]),
        lambda: destroy_digest_key(log, "1", witnesses=[witness]),
    ):
        with pytest.raises(AuditUnavailable, match=r"file locks of POSIX.*AuditLog\(logger=…\)"):
            act()

    assert records(log) == before
    assert {path: path.read_bytes() for path in keys} == keys
