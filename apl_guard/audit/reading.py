"""The records of a log, for those who look into it. What was never acknowledged does not appear."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_guard.audit.folder import find_segments
from apl_guard.audit.record import Record
from apl_guard.audit.row import Line, Row
from apl_guard.audit.segment_files import writers_in
from apl_guard.errors import InvalidInput

__all__ = [
    "Found",
    "digest_keys_named",
    "find_decision",
    "is_about",
    "read_log",
    "read_rows",
    "say_where_reading_stops",
    "unwritten",
]

_log = logging.getLogger("apl_guard")


@dataclass(frozen=True)
class Found:
    """A record and where it stands."""

    record: Record
    line: Line

    @property
    def fields(self) -> dict[str, Any]:
        """The record with its place, as one mapping."""
        return {"writer": self.record.writer, "seq": self.record.seq, **self.record.fields}


def read_rows(folder: Path) -> Iterator[Row]:
    """The records of each writer, up to the first that does not follow; a warning says where that is.

    Raises:
        InvalidInput: The folder holds no log.
    """
    segments = find_segments(folder)
    for writer, numbers in writers_in(segments).items():
        row = Row(segments, writer, numbers)
        yield row
        if row.problem is not None:
            say_where_reading_stops(row)


def say_where_reading_stops(row: Row) -> None:
    """Warn that an answer lacks what stands after the first bad record of a writer."""
    _log.warning(
        "%s: %s; nothing after it is in this answer: apl-guard audit verify %s",
        *(row.writer, row.problem, row.folder.parent),
    )


def read_log(folder: Path, containing: bytes = b"") -> Iterator[Found]:
    """Every record, writer after writer.

    Args:
        folder: The log.
        containing: Only records whose line contains these bytes.

    Raises:
        InvalidInput: The folder holds no log.
    """
    for row in read_rows(folder):
        for line in row:
            if containing in line.content:
                try:
                    record = Record.parse(line.content)
                except ValueError as error:
                    row.problem = f"record {line.seq}: {error}"
                    break
                yield Found(record, line)


def digest_keys_named(folder: Path) -> set[str]:
    """The ids of the digest keys that the records of a log name: of decisions, and of rotations.

    Raises:
        InvalidInput: The folder holds no log.
    """
    return {id.decode() for row in read_rows(folder) for line in row for id in _KEY_ID.findall(line.content)}


_KEY_ID = re.compile(rb'"(?:key_id|before|after)":"([0-9a-f]{16})"')


def unwritten(gap: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """What a gap says is missing: event and decision, "" where it was about none, and how many it does not name."""
    records = gap.get("records")
    pairs = [each for each in records if isinstance(each, list) and len(each) == 2] if isinstance(records, list) else []
    named = [(str(event), str(decision or "")) for event, decision in pairs]
    count = gap.get("refused")
    return named, max(0, count - len(named)) if type(count) is int else 0


def is_about(record: Record, decision_id: str) -> bool:
    """Whether a record is of a decision, or names it as one whose record is missing.

    The id of a guard stands for the records of its policies.
    """
    fields = record.fields
    named = [decision for _, decision in fields.get("records", ())]
    is_named = decision_id in named or decision_id in fields.get("orphans", ())
    return is_named or decision_id in (fields.get("decision_id"), fields.get("guard"))


def find_decision(folder: Path, decision_id: str) -> list[Found]:
    """Every record about a decision, also those of a recovery or a gap.

    Raises:
        InvalidInput: There is none.
    """
    found = []
    if decision_id.isascii() and decision_id.isprintable() and decision_id:
        for each in read_log(folder, containing=decision_id.encode()):
            if is_about(each.record, decision_id):
                found.append(each)
    if not found:
        raise InvalidInput(f"there is no decision {decision_id[:64]!r}", where=folder)
    return found
