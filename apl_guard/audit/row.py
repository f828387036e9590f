"""The records of one writer as a reader sees them: whole lines, each naming the hash of the one before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from apl_guard.audit.merkle import leaf_hash
from apl_guard.audit.record import MAX_LINE, NO_PREVIOUS, Record
from apl_guard.audit.segment_files import Rest, describe_rest, segment_name

__all__ = ["Line", "Row", "bytes_read"]

bytes_read: ContextVar[Callable[[int], object]] = ContextVar("bytes_read", default=int)
"""Called with the number of bytes that were read since it was called last, by those who show how far it is."""
_TELL_EACH = 1 << 20

_TIMESTAMP = re.compile(rb'"timestamp":"([^"\\]{1,40})"')


@dataclass(frozen=True)
class Line:
    """One record where it stands."""

    content: bytes
    leaf: bytes
    seq: int
    segment: int
    offset: int

    @property
    def is_ours(self) -> bool:
        """Whether the log speaks about itself here."""
        return b'"event":"audit.' in self.content[100:250]

    @property
    def timestamp(self) -> str:
        """When it says that it was written."""
        found = _TIMESTAMP.search(self.content, 0, 400)
        return "" if found is None else found[1].decode("ascii")


@dataclass
class Row:
    """Reads the records of a writer in order, up to the first that does not follow.

    Args:
        folder: The folder of segments.
        writer: The writer.
        numbers: Its segments.
        start: The segment to begin with. What stands before it is believed.
        offset: The byte of that segment to begin with, where a record begins.
    """

    folder: Path
    writer: str
    numbers: Sequence[int]
    start: int = 0
    offset: int = 0
    size: int = 0
    """Records read so far."""
    problem: str | None = None
    """What is wrong where reading stopped."""
    rest: list[Mapping[str, Any]] = field(default_factory=list)
    """What follows the last record: segment, bytes and SHA-256, as in the record of a recovery."""
    is_torn: bool = False
    """Whether the rest looks like what a crash leaves."""
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Line]:
        if not self.numbers or self.numbers[0] != 0:
            self.problem = "its first segment is missing"
            return
        position: int | None
        position, start, last = self._beginning()
        count = bytes_read.get()
        while position is not None:
            number = self.numbers[position]
            following, end, is_suspect = self._successor(position)
            path = self.folder / segment_name(self.writer, number)
            offset = counted = start
            start = 0
            with path.open("rb") as stream:
                stream.seek(offset)
                while end is None or offset < end:
                    line = stream.readline(MAX_LINE + 2)
                    if not line:
                        break
                    if not line.endswith(b"\n") or (end is not None and offset + len(line) > end):
                        left = self._look_at_left(position, following)
                        if following is None and self._successor(position)[0] is not None:
                            break  # it was being written, and is whole by now
                        self._stop(stream, number, following, line, left)
                        return
                    content = line[:-1]
                    wrong = self._check(content, last)
                    if wrong is not None:
                        left = self._look_at_left(position, following)
                        self._stop(stream, number, following, line, left, wrong)
                        return
                    leaf = leaf_hash(content)
                    last = leaf.hex()
                    self.size += 1
                    yield Line(content, leaf, self.size - 1, number, offset)
                    offset += len(line)
                    if offset - counted > _TELL_EACH:
                        count(offset - counted)
                        counted = offset
                count(offset - counted)
                # Read before it is asked again, so that what was whole when it was read is found to go on from here.
                left = self._look_at_left(position, following)
                if following is None and self._successor(position)[0] is not None:
                    start = offset  # the log is in use, and has gone on in another segment since
                    continue
                if end is not None and offset < end:
                    self.problem = f"segment {number} was cut off at byte {offset} of {end}, record {self.size}"
                    return
                if end is not None and stream.read(1):
                    if not is_suspect:
                        self.problem = f"segment {number} goes on after its end at byte {end}"
                        return
                    self.notes.append(f"segment {number}: what follows byte {end} was never acknowledged")
            self._leftover(left)
            position = following

    def _beginning(self) -> tuple[int, int, str]:
        """The position of the first segment, the byte in it to begin with, and the hash of the line before."""
        if not self.offset and self.start not in self.numbers[1:]:
            return 0, 0, NO_PREVIOUS
        with (self.folder / segment_name(self.writer, self.start)).open("rb") as stream:
            stream.seek(self.offset)
            _, self.size, last = Record.head(stream.readline(MAX_LINE + 2).rstrip(b"\n"))
        return self.numbers.index(self.start), self.offset, last

    def _check(self, content: bytes, last: str) -> str | None:
        try:
            writer, seq, prev = Record.head(content)
        except ValueError as error:
            return f"record {self.size}: {error}"
        if writer != self.writer or seq != self.size:
            return f"record {self.size}: in its place stands record {seq} of {writer}"
        if prev != last:
            return f"record {max(self.size - 1, 0)} is not the one that record {self.size} names as the one before"
        return None

    def _successor(self, position: int) -> tuple[int | None, int | None, bool]:
        """The segment that goes on after this one, and where it says that this one ends.

        Of several in a row that say so, it is the last: others were begun in vain, and nothing in them acknowledged.
        """
        found: tuple[int | None, int | None, bool] = None, None, False
        for later in range(position + 1, len(self.numbers)):
            path = self.folder / segment_name(self.writer, self.numbers[later])
            with path.open("rb") as stream:
                line = stream.readline(MAX_LINE + 2)
            if not line.endswith(b"\n"):
                continue
            try:
                fields = Record.parse(line[:-1]).fields
                previous = fields["previous"]
                if fields["event"] != "audit.segment":
                    continue
                if previous["segment"] == self.numbers[position]:
                    found = later, previous["bytes"], previous["suspect"]
                elif found[0] is not None:
                    break
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _stop(
        self,
        stream: BinaryIO,
        number: int,
        following: int | None,
        line: bytes,
        left: list[Rest],
        wrong: str | None = None,
    ) -> None:
        if following is not None:
            self.problem = wrong or f"record {self.size} is cut off in the middle of the log"
            return
        rest = describe_rest(number, stream, line)
        self.rest.append(rest.fields)
        self.is_torn = wrong is None or rest.has_zeros
        self.problem = None if self.is_torn else wrong
        self._leftover(left)

    def _look_at_left(self, position: int, following: int | None) -> list[Rest]:
        """What is in the segments after this one, where no other goes on from it."""
        left = []
        for number in self.numbers[position + 1 :] if following is None else ():
            with (self.folder / segment_name(self.writer, number)).open("rb") as stream:
                left.append(describe_rest(number, stream))
        return left

    def _leftover(self, left: list[Rest]) -> None:
        """Segments that no other goes on to: begun, and never brought to a first record."""
        for rest in left:
            self.rest.append(rest.fields)
            if rest.has_lines and not rest.has_zeros:
                self.problem = self.problem or f"segment {rest.fields['segment']} does not go on from the one before"
            else:
                self.is_torn = True
