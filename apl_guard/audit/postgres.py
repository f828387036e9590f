"""A copy of the log in PostgreSQL, for platforms whose tools read there. The truth stays in the folder.

Every line goes into a table, as it is, so what was exported can be verified as the original. The database role
needs the right to insert and nothing else: it can neither read nor change nor remove what it has written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.reading import say_where_reading_stops
from apl_guard.audit.record import MAX_LINE, Record
from apl_guard.audit.row import Line, Row
from apl_guard.audit.segment_files import segment_name, writers_in
from apl_guard.audit.signed import identity_of
from apl_guard.errors import ExtraMissing, InvalidInput, StorageFailed
from apl_guard.storage import write_file

__all__ = ["SCHEMA", "export_to_postgres"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS apl_guard_audit (
  log text NOT NULL,
  writer text NOT NULL,
  seq bigint NOT NULL,
  at timestamptz NOT NULL,
  event text NOT NULL,
  decision_id text,
  line text NOT NULL,
  inserted timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (log, writer, seq)
);
CREATE INDEX IF NOT EXISTS apl_guard_audit_decision ON apl_guard_audit (decision_id);
CREATE INDEX IF NOT EXISTS apl_guard_audit_at ON apl_guard_audit (at);
"""
"""What the owner of the database runs once. Then: GRANT INSERT ON apl_guard_audit TO the role of the export."""

_INSERT = """
INSERT INTO apl_guard_audit (log, writer, seq, at, event, decision_id, line) VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""
_BATCH = 1000


def export_to_postgres(folder: Path, address: str) -> int:
    """Insert every record that was not inserted before.

    How far the last export came is kept in the folder of the log. Where that is lost, everything is inserted
    again, and what is there already stays.

    Args:
        folder: The log.
        address: The connection string, such as `postgresql://role@host/database`.

    Returns:
        Number of records that were sent.

    Raises:
        ExtraMissing: psycopg is not installed.
        InvalidInput: The folder holds no log, or one that was changed.
        OSError: It cannot be read.
        StorageFailed: The database does not take them. What was sent in earlier batches stays.
    """
    try:
        import psycopg
    except ImportError as error:
        raise ExtraMissing("postgres", needs="psycopg") from error
    log = identity_of(folder).log
    cursor_file = folder / f"export-{_name_of(address, psycopg)}.json"
    reached = _read(cursor_file)
    sent = 0
    try:
        with psycopg.connect(address, autocommit=True, connect_timeout=10) as connection:
            for batch in _batches(folder / SEGMENTS, reached):
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.executemany(_INSERT, [_row(log, writer, line) for writer, line in batch])
                for writer, line in batch:
                    reached[writer] = [line.seq, line.segment, line.offset]
                write_file(cursor_file, json.dumps(reached).encode())
                sent += len(batch)
    except ValueError as error:
        raise InvalidInput(f"a record cannot be read ({error}); verify the log", where=folder) from error
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StorageFailed(f"the database does not take the records ({reason})", path=folder) from error
    return sent


def _batches(segments: Path, reached: dict[str, list[int]]) -> Iterator[list[tuple[str, Line]]]:
    batch: list[tuple[str, Line]] = []
    for writer, numbers in writers_in(segments).items():
        last, segment, offset = reached.get(writer, [-1, 0, 0])
        if not _stands(segments / segment_name(writer, segment), offset, last):
            offset = 0  # a power cut may have taken what was sent already
        row = Row(segments, writer, numbers, start=segment, offset=offset)
        for line in row:
            if line.seq > last:
                batch.append((writer, line))
            if len(batch) >= _BATCH:
                yield batch
                batch = []
        if row.problem is not None:
            say_where_reading_stops(row)
    if batch:
        yield batch


def _stands(segment: Path, offset: int, seq: int) -> bool:
    """Whether the record of this number begins at a byte of a segment."""
    try:
        with segment.open("rb") as stream:
            stream.seek(offset)
            return Record.head(stream.readline(MAX_LINE + 2).rstrip(b"\n"))[1] == seq
    except (OSError, ValueError):
        return False


def _row(log: str, writer: str, line: Line) -> tuple[str | int | None, ...]:
    fields = Record.parse(line.content).fields
    decision = fields.get("decision_id")
    decision = decision if isinstance(decision, str) and decision.isprintable() else None
    return log, writer, line.seq, fields["timestamp"], fields["event"], decision, line.content.decode("ascii")


def _read(path: Path) -> dict[str, list[int]]:
    try:
        found = json.loads(path.read_bytes())
        return {str(writer): [int(each) for each in (seq, segment, at)] for writer, (seq, segment, at) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _name_of(address: str, psycopg: Any) -> str:
    """What tells databases apart in the name of a file, without user and password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(address)
    except (psycopg.Error, UnicodeError):
        # Without what led to it, which may hold the password.
        raise InvalidInput(
            "is no connection string; expected such as 'host=… dbname=… user=…'", where="--postgres"
        ) from None
    place = [str(parts.get(name)) for name in ("host", "port", "dbname")]
    return hashlib.sha256("\0".join(place).encode()).hexdigest()[:12]
