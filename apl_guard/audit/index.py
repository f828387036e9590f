"""A SQLite index over a log, for questions. It is made from the log, at any time again, and is never evidence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.record import Record
from apl_guard.audit.recover import writers_in
from apl_guard.audit.row import Row
from apl_guard.errors import InvalidInput, StorageFailed

__all__ = ["COLUMNS", "INDEX_FILE", "Index", "Question"]

INDEX_FILE = "index.sqlite"
COLUMNS = {
    "timestamp": "$.timestamp",
    "event": "$.event",
    "decision_id": "$.decision_id",
    "policy": "$.policy.name",
    "policy_version": "$.policy.version",
    "policy_digest": "$.policy.digest",
    "mode": "$.policy.mode",
    "tenant": "$.tenant",
    "route": "$.route",
    "subject": "$.subject",
    "backend": "$.backend",
    "action": "$.action",
    "effective_action": "$.effective_action",
    "category": "$.category",
    "result": "$.result",
    "error": "$.error",
    "prefix": "$.prefix",
    "prefix_digest": "$.prefix_digest",
    "images": "$.images",
    "overhead_ms": "$.overhead_ms",
    "generation_ms": "$.generation_ms",
}
"""Column → where its value is in a record. These can be asked for and grouped by."""

_INDEXED = ("timestamp", "decision_id", "event", "action", "result", "policy", "subject")
# Columns are computed from the line, so they cannot say anything else than it does.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS records (
  writer TEXT NOT NULL, seq INTEGER NOT NULL, segment INTEGER NOT NULL, line TEXT NOT NULL,
  {", ".join(f'"{name}" GENERATED ALWAYS AS (json_extract(line, {at!r})) VIRTUAL' for name, at in COLUMNS.items())},
  PRIMARY KEY (writer, seq)
) WITHOUT ROWID;
{" ".join(f'CREATE INDEX IF NOT EXISTS by_{name} ON records("{name}");' for name in _INDEXED)}
"""


@dataclass(frozen=True)
class Question:
    """What to look for."""

    where: Mapping[str, str | int | float]
    """Column → value that it has. A text that reads as a number stands for the number, too."""
    since: str | None = None
    """Timestamps from here on,"""
    until: str | None = None
    """up to here, this one left out."""
    group_by: Sequence[str] = ()
    """Count by these columns rather than list."""
    limit: int = 100
    containing: Sequence[Sequence[str]] | None = None
    """Digests: of each list, one has to stand in the record."""


class Index:
    """The index of a log.

    Args:
        log: The folder of the log.
        path: The index. None stands for `index.sqlite` in that folder.

    Raises:
        InvalidInput: The folder holds no log.
        StorageFailed: The index cannot be opened or made.
    """

    def __init__(self, log: Path, path: Path | None = None) -> None:
        self._segments = log / SEGMENTS
        if not self._segments.is_dir():
            raise InvalidInput("holds no audit log; expected log.json and a folder of segments", where=log)
        self._path = path or log / INDEX_FILE
        try:
            self._open()
        except sqlite3.DatabaseError:
            self._start_anew()  # whatever was there was no index

    @classmethod
    def as_it_is(cls, log: Path) -> Index:
        """The index of a log, opened to be looked at and not changed.

        Raises:
            sqlite3.DatabaseError: It is damaged, or cannot be read.
        """
        index = cls.__new__(cls)
        index._segments = log / SEGMENTS
        index._path = log / INDEX_FILE
        index._database = sqlite3.connect(f"{index._path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
        index._database.execute("SELECT count(*) FROM records")
        return index

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self) -> int:
        """Add what is new in the log. An index that does not agree with the log is made anew.

        Returns:
            Number of records that were added.

        Raises:
            StorageFailed: The index cannot be written.
        """
        try:
            return self._update()
        except sqlite3.DatabaseError:
            self._start_anew()
            return self._update()

    def rebuild(self) -> int:
        """Make it anew from the log.

        Returns:
            Number of records in it.

        Raises:
            StorageFailed: The index cannot be written.
        """
        self._start_anew()
        return self._update()

    def ask(self, question: Question) -> list[dict[str, Any]]:
        """Answer a question.

        Returns:
            The records, the newest first; or where it groups, the groups with their `count`, the largest first.

        Raises:
            InvalidInput: There is no such column.
        """
        for name in [*question.where, *question.group_by]:
            if name not in COLUMNS:
                raise InvalidInput(f"there is no column '{name}'; there are: {', '.join(COLUMNS)}", where="query")
        conditions: list[str] = []
        values: list[Any] = []
        for name, value in question.where.items():
            same = [value, *_as_number(value)]
            conditions.append(f'"{name}" IN ({", ".join("?" * len(same))})')
            values += same
        for digests in question.containing or ():
            conditions.append(f"({' OR '.join(['instr(line, ?)'] * len(digests))})")
            values += digests
        for condition, moment in (("timestamp >= ?", question.since), ("timestamp < ?", question.until)):
            if moment is not None:
                conditions.append(condition)
                values.append(moment)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if question.group_by:
            names = ", ".join(f'"{name}"' for name in question.group_by)
            found = self._database.execute(
                f"SELECT {names}, count(*) FROM records{where} GROUP BY {names} "
                f"ORDER BY count(*) DESC, {names} LIMIT ?",
                [*values, question.limit],
            )
            return [dict(zip([*question.group_by, "count"], row, strict=True)) for row in found]
        found = self._database.execute(
            f"SELECT line FROM records{where} ORDER BY timestamp DESC, writer, seq DESC LIMIT ?",
            [*values, question.limit],
        )
        return [json.loads(line) for (line,) in found]

    def differences(self) -> Iterator[str]:
        """Where the index says something else than the log, or nothing. Records newer than the index do not count."""
        indexed = dict(self._database.execute("SELECT writer, count(*) FROM records GROUP BY writer"))
        for writer, numbers in writers_in(self._segments).items():
            count = indexed.pop(writer, 0)
            rows = self._database.execute("SELECT seq, line FROM records WHERE writer = ? ORDER BY seq", [writer])
            here = Row(self._segments, writer, numbers)
            for row, line in zip(rows, here, strict=False):
                if row != (line.seq, line.content.decode()):
                    yield f"{writer}: record {line.seq} is missing from the index, or another in it"
                    break
            else:
                if here.size < count:
                    yield f"{writer}: the index holds {count - here.size} records that the log does not"
        for writer in indexed:
            yield f"{writer}: the log knows no such writer"

    def _update(self) -> int:
        added = 0
        known = self._database.execute("SELECT writer, count(*), max(seq), max(segment) FROM records GROUP BY writer")
        places = {writer: (count, last, segment) for writer, count, last, segment in known}
        with self._database:
            for writer, numbers in writers_in(self._segments).items():
                count, last, segment = places.pop(writer, (0, -1, 0))
                if count != last + 1:
                    raise sqlite3.DatabaseError("a record is missing")
                rows = self._new(writer, numbers, last, segment)
                cursor = self._database.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
                added += max(cursor.rowcount, 0)
            if places:
                raise sqlite3.DatabaseError("a writer is too many")
        return added

    def _new(self, writer: str, numbers: list[int], last: int, segment: int) -> Iterator[tuple[str, int, int, str]]:
        """The records after the last one that is known. Segments before its own are not read."""
        try:
            for line in Row(self._segments, writer, numbers, start=segment):
                if line.seq > last:
                    Record.parse(line.content)
                    yield writer, line.seq, line.segment, line.content.decode("ascii")
        except ValueError:
            return  # nothing after it can be relied on; `verify` names it

    def _open(self) -> None:
        try:
            self._database = sqlite3.connect(self._path, timeout=30)
            self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
        except sqlite3.OperationalError as error:
            raise StorageFailed(
                f"the index cannot be opened ({error}); name another place with --index", path=self._path
            ) from error

    def _start_anew(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageFailed(f"cannot be removed ({error.strerror})", path=path) from error
        self._open()


def _as_number(value: str | int | float) -> list[float]:
    """The number that a text reads as. In a record, a version is one, and the name of a tenant may look like one."""
    try:
        return [float(value)] if isinstance(value, str) and value.isascii() else []
    except ValueError:
        return []
