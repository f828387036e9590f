"""The SQLite file of the index: what is in it, and when it is ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
import zlib
from functools import cache
from pathlib import Path

from apl_guard.audit.question import COLUMNS
from apl_guard.errors import StorageFailed

__all__ = [
    "INDEX_FILE",
    "AnotherVersionError",
    "check_as_made",
    "check_is_ours",
    "check_room",
    "open_database",
    "open_to_look",
    "says_nothing_about_the_index",
]

INDEX_FILE = "index.sqlite"
"""In the folder of a log, unless another place is named."""
_MARK = 0x61706C67
"""In the header of the file, as SQLite's `application_id`: what has another one is somebody else's."""

_INDEXED = (
    "timestamp",
    *("event, timestamp, decision_id", "decision_id, event"),  # decisions without an outcome are found in these alone
    *("action, timestamp", "result, timestamp", "policy, timestamp", "tenant, timestamp", "subject, timestamp"),
)
# Columns are computed from the line, so they cannot say anything else than it does.
_SCHEMA = [
    f"""
CREATE TABLE records (
  writer TEXT NOT NULL, seq INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL, line TEXT NOT NULL,
  {", ".join(f'"{name}" GENERATED ALWAYS AS (json_extract(line, {at!r})) VIRTUAL' for name, at in COLUMNS.items())},
  UNIQUE (writer, seq)
)""",
    *(f"CREATE INDEX by_{names.replace(', ', '_')} ON records({names})" for names in _INDEXED),
]
_COLUMNS_MARK = zlib.crc32("".join(_SCHEMA).encode()) & 0x7FFFFFFF
"""In the header, as SQLite's `user_version`: an index with other columns, of another version of this package, is made
anew."""
_CACHE_KIB = 65_536
"""Of eight trees that grow at eight places, what is being added to should stay in memory."""

_RESERVE = 256 << 20
"""Bytes of a disk that an index leaves free, and a twentieth of a large one."""

_PATIENCE = 30
"""Seconds for which one waits for another who writes."""


class AnotherVersionError(sqlite3.DatabaseError):
    """Another version of this package made it, so nothing is answered from it here: it is made anew."""


def open_database(path: Path) -> sqlite3.Connection:
    """The database, which is made if it is not there.

    Raises:
        sqlite3.DatabaseError: It cannot be opened, or holds something else than this version makes.
    """
    with contextlib.suppress(OSError):  # SQLite says more about what is wrong
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o640))  # for whom the records are, of which it holds copies
    database = sqlite3.connect(path, timeout=_PATIENCE)
    try:
        _write_ahead(database)
        database.executescript(f"PRAGMA synchronous=NORMAL; PRAGMA cache_size=-{_CACHE_KIB}")
        database.execute("BEGIN IMMEDIATE")  # two that find none wait for each other
        with database:
            if not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                for statement in [f"PRAGMA application_id={_MARK}", f"PRAGMA user_version={_COLUMNS_MARK}", *_SCHEMA]:
                    database.execute(statement)
        check_as_made(database)
    except BaseException:
        database.close()
        raise
    return database


def open_to_look(path: Path) -> sqlite3.Connection:
    """The database as it is, to be looked at and not changed.

    Raises:
        sqlite3.DatabaseError: It is damaged, cannot be read, or holds something else than this version makes.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _as_it_is(address)
    except sqlite3.OperationalError as error:
        # On a disk that cannot be written, SQLite can only read what nobody is about to change.
        if not says_nothing_about_the_index(error) or Path(f"{path}-wal").exists():
            raise
        return _as_it_is(f"{address}&immutable=1")


def _as_it_is(address: str) -> sqlite3.Connection:
    database = sqlite3.connect(address, uri=True, timeout=_PATIENCE)
    check_as_made(database)
    return database


def _write_ahead(database: sqlite3.Connection) -> None:
    """Let readers and a writer work at once. Where two begin at the same moment, SQLite itself does not wait here."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def check_as_made(database: sqlite3.Connection) -> None:
    """Make sure that what is in a database was made by this version, and to say what its lines say.

    Raises:
        AnotherVersionError: Another version made it.
        sqlite3.DatabaseError: It is damaged, or holds something else.
    """
    (mark,) = database.execute("PRAGMA user_version").fetchone()
    if mark != _COLUMNS_MARK:
        raise AnotherVersionError("it has the columns of another version")
    if _described(database) != _as_made():
        raise sqlite3.DatabaseError("it holds something else than this version makes")


def check_is_ours(path: Path) -> None:
    """Refuse a file that somebody named by mistake, rather than overwrite it.

    Raises:
        StorageFailed: It is no index, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            header = stream.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageFailed(f"the index cannot be read ({error.strerror})", path=path) from error
    if header and (header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72]) != _MARK):
        raise StorageFailed("is no index; name a file that is not there yet with --index", path=path)


def check_room(path: Path) -> None:
    """Leave the last of a disk to those who write to a log there: without room they give no image.

    Raises:
        StorageFailed: There is too little.
    """
    disk = shutil.disk_usage(path.parent)
    if disk.free < max(disk.total // 20, _RESERVE):
        raise StorageFailed(
            f"the disk has {disk.free >> 20} MiB left, which stay for those who write to logs; the index takes almost "
            "twice the space of its log: name a place on another disk with --index",
            path=path,
        )


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


def _described(database: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    return set(database.execute("SELECT type, name, sql FROM sqlite_master"))


@cache
def _as_made() -> set[tuple[str, str, str | None]]:
    database = sqlite3.connect(":memory:")
    for statement in _SCHEMA:
        database.execute(statement)
    found = _described(database)
    database.close()
    return found
