"""How much of a log is vouched for, and by whom: what `verify` counts, and who may read what is written."""

import os
import shutil
import stat

from hypothesis import given, settings
from hypothesis import strategies as st
from logs import make_log

from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.subjects import SubjectKeys
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS


@settings(max_examples=12)
@given(st.data())
def test_records_are_witnessed_as_far_as_the_witness_that_has_most(whole, tmp_path_factory, data):
    """And sealed as far as the checkpoints of the log: what is newer than those of all witnesses may be changed yet."""
    place = tmp_path_factory.mktemp("vouched")
    lines = (whole / "log" / CHECKPOINTS).read_bytes().splitlines(keepends=True)
    kept = data.draw(st.lists(st.integers(0, len(lines)), min_size=1, max_size=2))
    for number, count in enumerate(kept):
        copy = shutil.copytree(whole / "witness", place / str(number))
        (next(copy.iterdir()) / CHECKPOINTS).write_bytes(b"".join(lines[:count]))

    report = verify_log(whole / "log", [place / str(number) for number in range(len(kept))])

    sizes = {c.writer: c.size for c in (Checkpoint.parse(line[:-1]) for line in lines[: max(kept)])}
    assert (report.witnessed, report.sealed) == (sum(sizes.values()), report.records)
    assert report.verdict == (Verdict.VALID if sizes else Verdict.UNVERIFIABLE)


def test_nobody_else_reads_records_or_keys(folders):
    """Whatever the umask of the service lets through. What the log is known by may be read by everybody."""
    log, witness = folders
    before = os.umask(0)
    try:
        make_log(log, witness, calls=2, writers=1)
        with DurableLog(log, [witness]) as durable:
            SubjectKeys(durable.keys, durable.digest_key).encrypt("account-7", "d", {})
    finally:
        os.umask(before)

    for path in log.rglob("*"):
        rights = stat.S_IMODE(path.stat().st_mode)
        if path.is_relative_to(log / "keys"):
            assert rights & 0o077 == 0, path
        elif path.is_relative_to(log / "segments") and path.is_file():
            assert rights & 0o007 == 0, path
    assert (log / CHECKPOINTS).stat().st_mode & 0o007 == 0
