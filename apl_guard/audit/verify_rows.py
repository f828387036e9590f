"""Whether the records of a log are those under its checkpoints, and whether somebody can read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apl_guard.audit.chain import Chain, Sealed
from apl_guard.audit.checkpoint import timestamp_of
from apl_guard.audit.merkle import Tree
from apl_guard.audit.record import Record
from apl_guard.audit.report import Report
from apl_guard.audit.row import Row
from apl_guard.audit.segment_files import is_alive, writers_in

__all__ = ["check_rows"]

_MINUTE = 60


def check_rows(segments: Path, log: str, chain: Chain, witnessed: int, report: Report) -> None:
    """Hold the records of each writer against its checkpoints.

    Args:
        segments: The folder of segments.
        log: The id of the log.
        chain: The checkpoints that hold.
        witnessed: How many of them a witness has.
        report: What was found is put in there.

    Raises:
        OSError: A file cannot be read.
    """
    present = writers_in(segments) if segments.is_dir() else {}
    rows: list[Row] = []
    recovered: dict[str, list[dict[str, Any]]] = {}
    for writer in sorted(present.keys() | chain.sealed.keys()):
        report.writers += 1
        row = Row(segments, writer, present.get(writer, []))
        rows.append(row)
        sealed = chain.sealed.get(writer, Sealed())
        wrong = _hold_against(row, log, sealed, recovered)
        size = sealed.size
        if wrong is None and row.size < size:
            # Seen first: what is missing was there when the checkpoint was made.
            wrong = f"record {row.size} and what follows is missing, {size} are sealed" + (
                f" ({row.problem})" if row.problem else ""
            )
        if wrong is not None:
            report.findings.append(f"{writer}: {wrong}")
            row.problem, row.rest = None, []
        report.records += row.size
        report.sealed += min(size, row.size)
        report.witnessed += min(sealed.size_before(witnessed), row.size)
        report.notes += [f"{writer}: {note}" for note in row.notes]
    for row in rows:
        is_sealed = row.writer in chain.sealed
        is_closed = is_sealed and chain.sealed[row.writer].is_closed
        _judge_end(row, recovered.get(row.writer, []), is_closed, report)
        if not is_sealed and row.size and not _lives(row):
            report.torn.append(f"{row.writer}: its process ended before its first checkpoint")


def _hold_against(row: Row, log: str, sealed: Sealed, recovered: dict[str, list[dict[str, Any]]]) -> str | None:
    """Read all records of a writer; what is wrong with the first that no checkpoint agrees with."""
    tree = Tree()
    good = at = 0
    times: list[str] = []
    early, earliest = 0, ""
    for line in row:
        tree.append(line.leaf)
        try:
            # All of it, for where readers stop they show nothing of what follows.
            fields = Record.parse(line.content).fields
        except ValueError as error:
            return f"record {line.seq} cannot be read: {error}"
        if line.seq == 0 and (fields["event"] != "audit.segment" or fields.get("previous", 0) is not None):
            return "record 0 is none that a row begins with"
        if fields["event"] == "audit.segment" and fields.get("log") != log:
            return f"record {line.seq} is of log {str(fields.get('log'))[:32]!a}; take its segments away"
        if fields["event"] == "audit.recovery":
            try:
                recovered.setdefault(fields["dead_writer"], []).extend(fields["torn"])
            except (KeyError, TypeError):
                return f"record {line.seq} is none that a log writes about itself"
        if at < len(sealed.sizes):  # what no checkpoint follows may be millions
            times.append(fields["timestamp"])
        if at < len(sealed.sizes) and tree.size == sealed.sizes[at]:
            if sealed.root(at) != tree.root:
                return f"one of the records {good} to {tree.size - 1} is not the one that was sealed"
            limit = _time(sealed.seconds[at] - _MINUTE)
            for seq, time in enumerate(times, good):
                if time < limit:
                    early += 1
                    earliest = earliest or f"record {seq}: {time}, sealed {_time(sealed.seconds[at])}"
            good, at = tree.size, at + 1
            times.clear()
    if sealed.is_closed and tree.size > sealed.size:
        return f"record {sealed.size} stands there after the writer was closed"
    if early:
        row.notes.append(
            f"{early} records say that they are older by more than a minute than the first checkpoint over them, first "
            f"{earliest}; a crash leaves such records, a witness that could not be written, and a wrong clock: nothing "
            "proves that they are so old"
        )
    return None


def _time(seconds: float) -> str:
    """Before what is no time, there is none."""
    try:
        return timestamp_of(seconds)
    except (ValueError, OverflowError):
        return ""


def _judge_end(row: Row, recovered: list[dict[str, Any]], is_closed: bool, report: Report) -> None:
    """What stands after the last record is harmless where another process recorded it, else torn or worse."""
    unexplained = [piece for piece in row.rest if piece not in recovered]
    if row.rest and not unexplained:
        report.notes.append(f"{row.writer}: what a crash left behind was recorded and set aside")
    elif row.problem is not None:
        report.findings.append(f"{row.writer}: {row.problem}")
    elif unexplained and is_closed:
        report.findings.append(f"{row.writer}: bytes were added after the writer was closed")
    elif unexplained and _lives(row):
        report.notes.append(f"{row.writer}: a record was being written just now")
    elif unexplained:
        report.torn.append(f"{row.writer}: record {row.size} is cut off")


def _lives(row: Row) -> bool:
    return bool(row.numbers) and is_alive(row.folder, row.writer, list(row.numbers))
