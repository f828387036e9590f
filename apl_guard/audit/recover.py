"""What a process left behind that died: read to its last whole record, then sealed and closed by another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import MAX_LINE, Record
from apl_guard.audit.segment_files import describe_rest, segment_name

__all__ = ["Remains", "read_remains"]


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


def read_remains(folder: Path, writer: str, numbers: list[int]) -> Remains:
    """Read a dead writer to its last whole record.

    Only its last segment is read, which begins with all that is needed of those before.

    Raises:
        OSError: A file cannot be read.
    """
    remains = Remains(writer)
    for number in reversed(numbers):
        path = folder / segment_name(writer, number)
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
