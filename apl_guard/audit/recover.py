"""What a process left behind that died: read to its last whole record, then sealed and closed by another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apl_guard.audit import disk
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import MAX_LINE, Record
from apl_guard.audit.segments import describe_rest, segment_name

__all__ = ["Remains", "is_alive", "read_remains", "segments_of", "writers_in"]

_NAME = re.compile(r"([0-9a-f]{24})\.([0-9]{6})\.jsonl")


@dataclass
class Remains:
    """What is left of a writer."""

    writer: str
    log: str | None = None
    """The log that its records say they are of."""
    tree: Tree = field(default_factory=Tree)
    """Over its whole records."""
    segment: int = 0
    length: int = 0
    """Bytes of the last segment that hold whole records."""
    orphans: dict[str, None] = field(default_factory=dict)
    """Decisions without an outcome."""
    torn: list[dict[str, Any]] = field(default_factory=list)
    """What follows the last whole record: segment, bytes and SHA-256."""

    def fields(self) -> dict[str, Any]:
        """The fields of the record about it."""
        return {
            "dead_writer": self.writer,
            "segment": self.segment,
            "bytes": self.length,
            "size": self.tree.size,
            "root": self.tree.root.hex(),
            "torn": self.torn,
            "orphans": list(self.orphans),
            "result": "unknown",
        }


def writers_in(folder: Path) -> dict[str, list[int]]:
    """Writer → the numbers of its segments, both in order."""
    found = _listed(folder)
    if any(len(numbers) <= numbers[-1] for numbers in found.values()):
        # A listing made while segments are begun may hold one and lack one that was begun before it. A second has it.
        again = _listed(folder)
        found = {
            writer: [number for number in again.get(writer, numbers) if number <= numbers[-1]]
            for writer, numbers in found.items()
        }
    return found


def _listed(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    with os.scandir(folder) as entries:
        # A pipe or a device by such a name is none: one could wait for it, or read it, for ever.
        names = sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_file())
    for name in names:
        writer, number, _ = name.split(".")
        found.setdefault(writer, []).append(int(number))
    return found


def segments_of(folder: Path, writer: str, numbers: list[int]) -> Iterator[tuple[int, Path]]:
    """Number and path of each segment of a writer."""
    for number in numbers:
        yield number, folder / segment_name(writer, number)


def is_alive(folder: Path, writer: str, numbers: list[int]) -> bool:
    """Whether the process of a writer still holds it.

    Raises:
        OSError: It cannot be opened.
    """
    if not disk.HAS_LOCKS:
        return False  # no guard can write here, so this is a copy
    handle = os.open(folder / segment_name(writer, numbers[0]), os.O_RDONLY)
    try:
        return disk.is_locked(handle)
    finally:
        os.close(handle)


def read_remains(folder: Path, writer: str, numbers: list[int]) -> Remains:
    """Read a dead writer to its last whole record.

    Only its last segment is read, which begins with all that is needed of those before.

    Raises:
        OSError: A file cannot be read.
    """
    remains = Remains(writer)
    for number, path in reversed(list(segments_of(folder, writer, numbers))):
        if _read_segment(path, number, remains):
            break
        with path.open("rb") as stream:
            remains.torn.insert(0, dict(describe_rest(number, stream).fields))
    return remains


def _read_segment(path: Path, number: int, remains: Remains) -> bool:
    """Whether the segment has a first record; if so, what it holds."""
    last = None
    with path.open("rb") as stream:
        while (line := stream.readline(MAX_LINE + 2)).endswith(b"\n"):
            line = line[:-1]
            try:
                record = Record.parse(line)
                if last is None:
                    if record.fields["event"] != "audit.segment" or record.fields["segment"] != number:
                        return False
                    remains.log = record.fields.get("log")
                    remains.tree = Tree(record.fields["size"], map(bytes.fromhex, record.fields["peaks"]))
                    remains.orphans = dict.fromkeys(record.fields["open"])
                    last = record.prev
                if (record.writer, record.seq, record.prev) != (remains.writer, remains.tree.size, last):
                    break
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            leaf = leaf_hash(line)
            remains.tree.append(leaf)
            last = leaf.hex()
            remains.length += len(line) + 1
            _note(record, remains)
        if last is None:
            return False
        remains.segment = number
        stream.seek(remains.length)
        if rest := stream.read(1):
            remains.torn.insert(0, dict(describe_rest(number, stream, rest).fields))
    return True


def _note(record: Record, remains: Remains) -> None:
    decision = record.fields.get("decision_id")
    if record.fields["event"] == "guard.decision":
        remains.orphans[str(decision)] = None
    elif record.fields["event"] == "guard.outcome":
        remains.orphans.pop(str(decision), None)
    elif record.fields["event"] == "audit.gap":
        for _, named in record.fields.get("records", ()):
            remains.orphans.pop(named, None)
