"""A SQLite index over a log, for questions. It is made from the log, at any time again, and is never evidence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from apl_guard.audit import index_file
from apl_guard.audit.folder import find_segments
from apl_guard.audit.index_file import INDEX_FILE, says_nothing_about_the_index
from apl_guard.audit.question import Question
from apl_guard.audit.reading import say_where_reading_stops, unwritten
from apl_guard.audit.record import Record
from apl_guard.audit.row import Row
from apl_guard.audit.segment_files import segment_name, writers_in
from apl_guard.errors import StorageFailed

__all__ = ["Index"]

_Entry = tuple[str, int, int, int, str]
"""Writer, number, segment and byte of a record, and its line."""
_INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?)"
_ALL = 10**9
_BATCH = 20_000
"""Records that are added at once. What was added stays if it is stopped after that."""


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
        self._counted_at: int | None = None
        if path is not None:
            index_file.check_is_ours(path)
        try:
            self._database = index_file.open_database(self._path)
        except sqlite3.DatabaseError as error:
            if says_nothing_about_the_index(error):
                raise self._failed(error) from error
            self._replace()  # whatever was there was no index

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
        self._counted_at = None
        try:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:  # at once, so that who asks meanwhile has the answer from before or from after
                self._database.execute("DELETE FROM records")
                return max(self._database.executemany(_INSERT, self._new({})).rowcount, 0)
        except sqlite3.DatabaseError as error:
            if says_nothing_about_the_index(error):
                raise self._failed(error) from error
        self._replace()
        try:
            return self._update()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def newer(self, than: Mapping[str, int], limit: int = 1000) -> Iterator[dict[str, Any]]:
        """Records after those that are known, in the order in which they were written by each writer.

        Args:
            than: Writer → the last record of it that is known. Of other writers, all are new.
            limit: At most so many.

        Raises:
            StorageFailed: The index cannot be read.
        """
        query = "SELECT line FROM records WHERE writer = ? AND seq > ? ORDER BY seq LIMIT ?"
        for writer, last in sorted(self.places().items()):
            known = than.get(writer, -1)
            if known < last and limit > 0:
                yield from (json.loads(line) for (line,) in self._each(query, [writer, known, limit]))
                limit -= last - known

    def open_decisions(self, since: str | None = None, until: str | None = None) -> int:
        """How many decisions of a time have no outcome, at whatever time that would be, and no word of its failure.

        Raises:
            StorageFailed: The index cannot be read.
        """
        ((count,),) = self._rows(
            "SELECT count(*) FROM records AS decided WHERE event = 'guard.decision' AND timestamp >= ? AND "
            "timestamp < ? AND NOT EXISTS (SELECT 1 FROM records WHERE decision_id = decided.decision_id AND "
            "event = 'guard.outcome')",
            [since or "", until or "~"],
        )
        ended = {decision for event, decision in self.unwritten()[0] if event == "guard.outcome"}
        return int(count) - sum(self._was_decided(decision, since, until) for decision in ended)

    def unwritten(self, since: str | None = None, until: str | None = None) -> tuple[list[tuple[str, str]], int]:
        """Event and decision of the records that could not be written, and how many more there are.

        Raises:
            StorageFailed: The index cannot be read.
        """
        gaps = self.ask(Question({"event": "audit.gap"}, since, until, limit=_ALL))
        found = [unwritten(gap) for gap in gaps]
        return [each for named, _ in found for each in named], sum(more for _, more in found)

    def digest_keys(self) -> set[str]:
        """The ids of the digest keys that decisions and rotations name.

        Raises:
            StorageFailed: The index cannot be read.
        """
        places = (("key_id", "guard.decision"), ("before", "audit.rotation"))
        query = "SELECT DISTINCT json_extract(line, ?) FROM records WHERE event = ?"
        return {str(id) for name, event in places for (id,) in self._rows(query, [f"$.{name}", event]) if id}

    def _was_decided(self, decision: str, since: str | None, until: str | None) -> bool:
        asked = "decision_id = ? AND event = 'guard.decision' AND timestamp >= ? AND timestamp < ?"
        return bool(self._rows(f"SELECT 1 FROM records WHERE {asked}", [decision, since or "", until or "~"]))

    def places(self) -> dict[str, int]:
        """Writer → its last record.

        Raises:
            StorageFailed: The index cannot be read.
        """
        try:
            return {writer: last for writer, (_, last) in self._count().items()}
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def ask(self, question: Question) -> Iterator[dict[str, Any]]:
        """Answer a question, row by row: there may be more than fit into memory.

        Returns:
            The records, the newest first; or where it groups, the groups with their `count`, the largest first.

        Raises:
            InvalidInput: There is no such column.
            StorageFailed: The index cannot be read.
        """
        query, values = question.to_sql()
        for row in self._each(query, values):
            yield (
                dict(zip([*question.group_by, "count"], row, strict=True)) if question.group_by else json.loads(row[0])
            )

    def _update(self) -> int:
        added, version = 0, None
        rows: Iterator[_Entry] = iter(())
        while True:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                (now,) = self._database.execute("PRAGMA data_version").fetchone()
                if now != version:  # it is the first time, or somebody else has added something
                    rows, version = self._new(self._count()), now
                batch = list(islice(rows, _BATCH))
                self._counted_at = None  # if it is interrupted from here on, they are counted anew
                self._database.executemany(_INSERT, batch)
            for writer, seq, *_ in batch:
                self._counted[writer] = self._counted.get(writer, (0, -1))[0] + 1, seq
            self._counted_at = now
            added += len(batch)
            if len(batch) < _BATCH:
                return added

    def _new(self, places: Mapping[str, tuple[int, int]]) -> Iterator[_Entry]:
        """The records of the log that are not in the index, which holds so many of each writer, up to this one."""
        present = writers_in(self._segments)
        if places.keys() - present.keys():
            raise sqlite3.DatabaseError("a writer is too many")
        found = 0
        for writer, numbers in present.items():
            count, last = places.get(writer, (0, -1))
            if count != last + 1:
                raise sqlite3.DatabaseError("a record is missing")
            for entry in self._new_of(writer, numbers, last):
                found += 1
                if not found % _BATCH:
                    index_file.check_room(self._path)
                yield entry

    def _count(self) -> dict[str, tuple[int, int]]:
        """Writer → how many of its records are here, and the last. Counted anew only if somebody else has written."""
        (now,) = self._database.execute("PRAGMA data_version").fetchone()
        if now != self._counted_at:
            rows = self._database.execute("SELECT writer, count(*), max(seq) FROM records GROUP BY writer")
            self._counted, self._counted_at = {writer: (count, last) for writer, count, last in rows}, now
        return dict(self._counted)

    def _new_of(self, writer: str, numbers: list[int], last: int) -> Iterator[_Entry]:
        """The records after the last one that is known. What stands before that is not read."""
        row = Row(self._segments, writer, numbers)
        if last >= 0:
            row.start, row.offset = self._place(writer, last, numbers)
        try:
            for line in row:
                if line.seq > last:
                    Record.parse(line.content)
                    yield writer, line.seq, line.segment, line.offset, line.content.decode("ascii")
        except ValueError as error:
            row.problem = f"record {row.size - 1}: {error}"
        if row.problem is not None:
            say_where_reading_stops(row)

    def _place(self, writer: str, seq: int, numbers: list[int]) -> tuple[int, int]:
        """Segment and byte of a record that is known, if it stands there."""
        query = "SELECT segment, offset, line FROM records WHERE writer = ? AND seq = ?"
        segment, offset, line = self._database.execute(query, [writer, seq]).fetchone()
        if segment in numbers and type(offset) is int and offset >= 0 and type(line) is str:
            with (self._segments / segment_name(writer, segment)).open("rb") as stream:
                stream.seek(offset)
                if stream.read(len(line) + 1) == line.encode() + b"\n":
                    return segment, offset
        raise sqlite3.DatabaseError("a record stands somewhere else")

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        return list(self._each(query, values))

    def _each(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        try:
            yield from self._database.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.DatabaseError) -> StorageFailed:
        return StorageFailed(f"the index cannot be used ({error}); name another place with --index", path=self._path)

    def _replace(self) -> None:
        """Make an empty one in the place of what is no index."""
        if hasattr(self, "_database"):
            self._database.close()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageFailed(f"cannot be removed ({error.strerror})", path=path) from error
        try:
            self._database = index_file.open_database(self._path)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error
