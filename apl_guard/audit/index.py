"""A SQLite index over a log, for questions. It is made from the log, at any time again, and is never evidence."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.audit.folder import SEGMENTS, find_segments
from apl_guard.audit.question import COLUMNS, Question
from apl_guard.audit.reading import say_where_reading_stops
from apl_guard.audit.record import Record
from apl_guard.audit.recover import writers_in
from apl_guard.audit.row import Row
from apl_guard.errors import StorageFailed

__all__ = ["INDEX_FILE", "Index", "says_nothing_about_the_index"]

INDEX_FILE = "index.sqlite"
_MARK = 0x61706C67
"""In the header of the file, as SQLite's `application_id`: what has another one is somebody else's."""

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
_COLUMNS_MARK = zlib.crc32(_SCHEMA.encode()) & 0x7FFFFFFF
"""In the header, as SQLite's `user_version`: an index with other columns, of another version of this package, is made
anew."""


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
        self._segments = find_segments(log)
        self._path = path or log / INDEX_FILE
        if path is not None:
            self._refuse_what_is_not_ours()
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
        address = f"{index._path.absolute().as_uri()}?mode=ro"
        try:
            index._look_at(address)
        except sqlite3.OperationalError as error:
            # On a disk that cannot be written, SQLite can only read what nobody is about to change.
            if not says_nothing_about_the_index(error) or Path(f"{index._path}-wal").exists():
                raise
            index._look_at(f"{address}&immutable=1")
        return index

    def _look_at(self, address: str) -> None:
        self._database = sqlite3.connect(address, uri=True, timeout=30)
        self._database.execute("SELECT count(*) FROM records")

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
        except sqlite3.DatabaseError as error:
            if says_nothing_about_the_index(error):
                raise self._failed(error) from error
        return self.rebuild()

    def rebuild(self) -> int:
        """Make it anew from the log.

        Returns:
            Number of records in it.

        Raises:
            StorageFailed: The index cannot be written.
        """
        self._start_anew()
        try:
            return self._update()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def newer(self, than: Mapping[str, int], limit: int = 1000) -> list[dict[str, Any]]:
        """Records after those that are known, in the order in which they were written by each writer.

        Args:
            than: Writer → the last record of it that is known. Of other writers, all are new.
            limit: At most so many.

        Raises:
            StorageFailed: The index cannot be read.
        """
        found: list[dict[str, Any]] = []
        for (writer,) in self._rows("SELECT DISTINCT writer FROM records ORDER BY writer", []):
            rows = self._rows(
                "SELECT line FROM records WHERE writer = ? AND seq > ? ORDER BY seq LIMIT ?",
                [writer, than.get(writer, -1), limit - len(found)],
            )
            found += [json.loads(line) for (line,) in rows]
        return found

    def open_decisions(self, since: str | None = None, until: str | None = None) -> int:
        """How many decisions of a time have no outcome, at whatever time that would be.

        Raises:
            StorageFailed: The index cannot be read.
        """
        ((count,),) = self._rows(
            "SELECT count(*) FROM records AS decided WHERE event = 'guard.decision' AND timestamp >= ? AND "
            "timestamp < ? AND NOT EXISTS (SELECT 1 FROM records WHERE decision_id = decided.decision_id AND "
            "event = 'guard.outcome')",
            [since or "", until or "~"],
        )
        return int(count)

    def places(self) -> dict[str, int]:
        """Writer → its last record.

        Raises:
            StorageFailed: The index cannot be read.
        """
        return dict(self._rows("SELECT writer, max(seq) FROM records GROUP BY writer", []))

    def ask(self, question: Question) -> list[dict[str, Any]]:
        """Answer a question.

        Returns:
            The records, the newest first; or where it groups, the groups with their `count`, the largest first.

        Raises:
            InvalidInput: There is no such column.
            StorageFailed: The index cannot be read.
        """
        query, values = question.to_sql()
        rows = self._rows(query, values)
        if question.group_by:
            return [dict(zip([*question.group_by, "count"], row, strict=True)) for row in rows]
        return [json.loads(line) for (line,) in rows]

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
        row = Row(self._segments, writer, numbers, start=segment)
        try:
            for line in row:
                if line.seq > last:
                    Record.parse(line.content)
                    yield writer, line.seq, line.segment, line.content.decode("ascii")
        except ValueError as error:
            row.problem = f"record {row.size - 1}: {error}"
        if row.problem is not None:
            say_where_reading_stops(row)

    def _refuse_what_is_not_ours(self) -> None:
        """A file that somebody named by mistake is not overwritten."""
        try:
            with self._path.open("rb") as stream:
                header = stream.read(100)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageFailed(f"the index cannot be read ({error.strerror})", path=self._path) from error
        if header and (header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72]) != _MARK):
            raise StorageFailed("is no index; name a file that is not there yet with --index", path=self._path)

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.DatabaseError) -> StorageFailed:
        return StorageFailed(f"the index cannot be used ({error}); name another place with --index", path=self._path)

    def _open(self) -> None:
        try:
            self._database = sqlite3.connect(self._path, timeout=30)
            (mark,) = self._database.execute("PRAGMA user_version").fetchone()
            if mark != _COLUMNS_MARK and self._database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                raise sqlite3.DatabaseError("it has the columns of another version")
            self._database.executescript(
                f"PRAGMA application_id={_MARK}; PRAGMA user_version={_COLUMNS_MARK}; PRAGMA journal_mode=WAL; "
                f"PRAGMA synchronous=NORMAL; {_SCHEMA}"
            )
        except sqlite3.OperationalError as error:
            if says_nothing_about_the_index(error):
                raise self._failed(error) from error
            raise

    def _start_anew(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageFailed(f"cannot be removed ({error.strerror})", path=path) from error
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error


def says_nothing_about_the_index(error: sqlite3.DatabaseError) -> bool:
    """Whether making it anew would not help: somebody else has it, or the disk is full, read-only or broken."""
    code = getattr(error, "sqlite_errorcode", None)  # None where we raised it
    return code is not None and code & 0xFF in _OF_THE_SYSTEM


_OF_THE_SYSTEM = frozenset(
    [
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    ]
)
