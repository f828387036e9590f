"""Whether the index of a log says what the log says, so that questions cannot be answered with less."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.index_file import (
    INDEX_FILE,
    AnotherVersionError,
    open_to_look,
    says_nothing_about_the_index,
)
from apl_guard.audit.report import Report, Verdict
from apl_guard.audit.row import Row
from apl_guard.audit.segment_files import writers_in

__all__ = ["check_index", "differences"]


def check_index(folder: Path, report: Report) -> None:
    """Compare the index, where there is one, with the log.

    What differs is a finding: the log may be whole, but what `query` showed until now was not.
    """
    if not (folder / INDEX_FILE).exists():
        return
    try:
        wrong = differences(folder)
    except AnotherVersionError:
        report.notes.append("index: made by another version, so the next question makes it anew")
        return
    except sqlite3.DatabaseError as error:
        if says_nothing_about_the_index(error):
            report.notes.append(f"index: cannot be looked at ({error}); it is not part of what was checked")
            return
        wrong = [f"cannot be read ({error})"]
    report.findings += [f"index: {found}; make it anew: apl-guard audit reindex {folder}" for found in wrong]
    if report.findings:
        report.verdict = Verdict.TAMPERED


def differences(folder: Path) -> list[str]:
    """Where the index of a log says something else than the log, or nothing. Records newer than it do not count.

    Raises:
        sqlite3.DatabaseError: It is damaged, or cannot be read.
    """
    with closing(open_to_look(folder / INDEX_FILE)) as database:
        return list(_differences(database, folder / SEGMENTS))


def _differences(database: sqlite3.Connection, segments: Path) -> Iterator[str]:
    indexed = dict(database.execute("SELECT writer, count(*) FROM records GROUP BY writer"))
    for writer, numbers in writers_in(segments).items():
        count = indexed.pop(writer, 0)
        query = "SELECT seq, segment, offset, line FROM records WHERE writer = ? ORDER BY seq"
        rows = database.execute(query, [writer])
        here = Row(segments, writer, numbers)
        for row, line in zip(rows, here, strict=False):
            if row != (line.seq, line.segment, line.offset, line.content.decode()):
                yield f"{writer}: record {line.seq} is missing from the index, or another in it"
                break
        else:
            if here.size < count:
                yield f"{writer}: the index holds {count - here.size} records that the log does not"
    for writer in indexed:
        yield f"{writer}: the log knows no such writer"
    # What it is searched by is kept apart from the records, and may leave some out.
    ((found, *_),) = database.execute("PRAGMA integrity_check(1)")
    if found != "ok":
        yield f"is damaged ({found})"
