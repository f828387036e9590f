"""A folder whose files are no longer files, or without end: there is a verdict, soon, and in little memory."""

import os
import tracemalloc

import pytest
from logs import call, records

from apl_guard import AuditUnavailable
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

NAME = f"{'a' * 24}.000000.jsonl"


def put(kind, path):
    """Something in the place of a file for which one could wait, or that one could read, for ever."""
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_segment(copy, run, kind):
    """As another file that is none of the log's; in the place of a segment, its records are missing."""
    log, witness = copy
    before = records(log)
    put(kind, log / "segments" / NAME)

    assert verify_log(log, [witness]).verdict == Verdict.VALID
    assert records(log) == before
    assert run("query", log)[0] == 0

    put(kind, sorted((log / "segments").iterdir())[0])
    report = verify_log(log, [witness])
    assert report.verdict == Verdict.TAMPERED
    assert any("its first segment is missing" in finding for finding in report.findings)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", [CHECKPOINTS, "log.json", "keys-000000.pub"])
def test_what_is_no_file_is_tampering(copy, kind, name):
    """Where the log keeps what it is held against."""
    log, witness = copy
    put(kind, log / name)

    assert verify_log(log, [witness]).verdict == Verdict.TAMPERED


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_witness_that_leads_elsewhere_is_an_error(copy, kind, tmp_path):
    """Whoever holds it can neither make a guard wait for ever, nor have it write to another place."""
    log, witness = copy
    (kept,) = witness.rglob(CHECKPOINTS)
    kept.unlink()
    os.mkfifo(kept) if kind == "pipe" else kept.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(AuditUnavailable, match="cannot be used"):
        DurableLog(log, [witness])
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_without_end_is_not_held_in_memory(copy):
    """Nor by the next guard, which records what a dead one left."""
    log, witness = copy
    durable = DurableLog(log, [witness])
    call(durable, 0)
    durable.seal()
    durable.leave()  # as if its process had died
    os.truncate(sorted((log / "segments").iterdir())[-1], 300 << 20)

    tracemalloc.start()
    try:
        report = verify_log(log, [witness])
        DurableLog(log, [witness]).close()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert report.verdict == Verdict.TORN
    assert most < 50 << 20
    assert verify_log(log, [witness]).verdict == Verdict.VALID
