"""One writer: a row of records in files of its own, each on disk before the call that wrote it goes on.

Callers that write at the same moment share one write and one sync. The first of them does it for all.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apl_guard.audit import disk
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import NO_PREVIOUS, encode_body, encode_line
from apl_guard.audit.segments import SEGMENT_BYTES, Segments
from apl_guard.errors import AuditUnavailable

__all__ = ["Writer"]

_MAX_NAMED = 10_000
_CLOSE = "audit.close"


@dataclass(frozen=True)
class _State:
    """What is on disk for certain. Replaced as a whole, so that no interruption leaves half of a change."""

    tree: Tree
    last: str
    """Hash of the last line, in hex."""
    segment: int
    length: int
    """Bytes of the segment that count."""
    has_ended: bool = False
    """Whether the last record is on disk."""
    batch: list[_Entry] | None = None
    """Those whose records came last."""


@dataclass(eq=False)
class _Entry:
    """A record on its way to the disk."""

    body: bytes
    """Empty for the last record, which is made when it is written."""
    event: str
    decision: str | None
    opens: bool
    closes: bool
    done: threading.Lock = field(default_factory=threading.Lock)
    """Locked while its caller waits."""
    is_written: bool = False
    error: BaseException | None = None


class Writer:
    """Appends records.

    Args:
        folder: Where its segments go.
        about: Fields of the first record of each segment, such as the process.
        on_commit: Called with the number of records that are new on disk.
        segment_bytes: A segment that has grown beyond this is followed by another.

    Raises:
        OSError: The first segment cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        on_commit: Callable[[int], None] = lambda _: None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.id = f"{int(time.time() * 1000) & (1 << 48) - 1:012x}{os.urandom(6).hex()}"
        self._folder = folder
        self._segments = Segments(folder, self.id)
        self._about = about
        self._on_commit = on_commit
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        """Threads that are in the middle of a record."""
        self._waiting: list[_Entry] = []
        self._batch: list[_Entry] = []
        """Those whose records are being written."""
        self._leader: _Entry | None = None
        """Who writes for everybody."""
        self._is_closed = False
        self._state = _State(Tree(), NO_PREVIOUS, -1, 0)
        self._open: dict[str, None] = {}
        self._refused: list[tuple[str, str | None]] = []
        self._refused_count = 0
        self._write([])

    @property
    def durable(self) -> Tree:
        """The tree over the records that are on disk."""
        return self._state.tree

    def append(
        self,
        event: str,
        fields: Mapping[str, Any],
        *,
        decision: str | None = None,
        opens: bool = False,
        closes: bool = False,
    ) -> None:
        """Write a record, and return when it is on disk.

        Args:
            event: What happened.
            fields: The rest of it.
            decision: The id of the decision that it is about.
            opens: Whether another record must follow for this decision.
            closes: Whether it is that record.

        Raises:
            AuditUnavailable: It is not on disk for certain. That it is missing is recorded as soon as possible.
        """
        try:
            entry = _Entry(encode_body(event, fields), event, decision, opens, closes)
        except (ValueError, TypeError) as error:
            self.refuse(event, decision, closes=closes)
            raise AuditUnavailable(
                f"the record cannot be written down ({type(error).__name__}), so there is no image"
            ) from error
        self._put(entry)
        if not entry.is_written:
            raise disk.unavailable(entry.error or OSError(), self._folder) from entry.error

    def refuse(self, event: str, decision: str | None, *, closes: bool = False) -> None:
        """Remember a record that shall not be written now, to say so in one that can be."""
        self._refuse([_Entry(b"", event, decision, opens=False, closes=closes)])

    def close(self) -> Tree:
        """Write the last record, behind all that have begun. None begins any more.

        Returns:
            The tree over all records of this writer.

        Raises:
            AuditUnavailable: This thread is in the middle of a record.
        """
        if not self._state.has_ended:  # it may have been interrupted before
            self._put(_Entry(b"", _CLOSE, None, opens=False, closes=False))
        return self._state.tree

    def release(self) -> None:
        """Close the files, without writing. Other processes take it for dead from now on."""
        self._is_closed = True
        self._segments.release()

    def _put(self, entry: _Entry) -> None:
        """Have a record written, by this thread or another."""
        thread = threading.get_ident()
        if thread in self._inside:
            raise AuditUnavailable(
                "this thread is in the middle of a record already, so a handler of signals has come in between; raise "
                "SystemExit in it, and close the log behind that"
            )
        try:
            self._inside.add(thread)
            entry.done.acquire()
            with self._lock:
                if entry.event == _CLOSE:
                    self._is_closed = True
                elif self._is_closed:
                    raise AuditUnavailable("the audit log is closed, so there is no image")
                self._waiting.append(entry)
                if self._leader is None:
                    self._leader = entry
            if self._leader is not entry:
                entry.done.acquire()
            if self._leader is entry:
                self._lead()
        except BaseException:  # such as Ctrl-C, or what a handler of signals raises
            self._leave(entry)
            raise
        finally:
            self._inside.discard(thread)

    # An interruption may come wherever Python calls something. Whatever leads is then passed on by `_leave`.

    def _lead(self) -> None:
        """Write for everybody who waits."""
        try:
            with self._lock:
                self._batch, self._waiting = self._waiting, []
            self._commit(self._batch)
        except BaseException as error:
            if self._state.batch is self._batch:
                raise  # behind the sync: what is on disk must not stand in a gap, too
            self._segments.give_up(self._state.segment)
            for entry in self._batch:
                entry.error = error
            self._refuse(self._batch)
            if not isinstance(error, Exception):
                raise
        self._pass_lead()

    def _leave(self, entry: _Entry) -> None:
        """A caller goes away. Its record is not written if nobody has begun, and a lead is not lost."""
        with self._lock:
            if entry in self._waiting:
                self._waiting.remove(entry)
        if self._leader is entry:
            self._pass_lead()

    def _pass_lead(self) -> None:
        """Let go of those who were written for, and wake the first who came meanwhile. Done again if interrupted."""
        if self._state.batch is self._batch:
            for entry in self._batch:
                entry.is_written = True
            _follow(self._open, self._batch)
            self._on_commit(len(self._batch))
        for entry in self._batch:
            with contextlib.suppress(RuntimeError):  # it is already let go
                entry.done.release()
        with self._lock:
            self._batch = []
            self._leader = self._waiting[0] if self._waiting else None
            if self._leader is not None:
                self._leader.done.release()

    def _commit(self, batch: list[_Entry]) -> None:
        before = self._state
        if before.has_ended:
            return  # somebody closes it again
        try:
            self._write(batch)
        except OSError:
            if self._state is not before:
                raise  # it is on disk, and a handler of signals has raised behind that
            # After a failed sync nothing is known about that file; what matters goes into a new one, once.
            self._segments.give_up(self._state.segment)
            self._write(batch)

    def _write(self, batch: list[_Entry]) -> None:
        state = self._state
        if self._segments.is_open and state.length >= self._segment_bytes:
            self._segments.end()
        is_new = not self._segments.is_open
        tree, last = state.tree.copy(), state.last
        lines: list[bytes] = []
        bodies = [entry.body or self._last_body(batch) for entry in batch]
        with self._lock:
            refused, refused_count = list(self._refused), self._refused_count
        named = len(refused)
        if refused:
            bodies.insert(0, encode_body("audit.gap", {"refused": refused_count, "records": refused}))
        if is_new:
            bodies.insert(0, self._first_body())
        for body in bodies:
            line = encode_line(self.id, tree.size, last, body)
            leaf = leaf_hash(line)
            tree.append(leaf)
            last = leaf.hex()
            lines.append(line)
        lines.append(b"")
        has_ended = any(entry.event == _CLOSE for entry in batch)
        content = b"\n".join(lines)
        if is_new:
            self._state = _State(tree, last, self._segments.begin(content), len(content), has_ended, batch)
        else:
            self._segments.append(content)
            self._state = _State(tree, last, state.segment, state.length + len(content), has_ended, batch)
        if refused:
            with self._lock:  # nothing is called in here, so that no interruption leaves a gap to be told twice
                del self._refused[:named]
                self._refused_count -= refused_count

    def _last_body(self, batch: Iterable[_Entry]) -> bytes:
        """The record that ends the row: what is open behind the records before it."""
        left_open = dict(self._open)
        _follow(left_open, batch)
        return encode_body(_CLOSE, {"open": list(left_open)})

    def _first_body(self) -> bytes:
        """The record that opens a segment: where the one before ends."""
        state = self._state
        previous = None
        if state.segment >= 0:
            previous = {
                "segment": state.segment,
                "bytes": state.length,
                "suspect": self._segments.is_suspect(state.segment),
            }
        fields = {
            **self._about,
            "segment": self._segments.next_number,
            "previous": previous,
            "size": state.tree.size,
            "peaks": [peak.hex() for peak in state.tree.peaks],
            "open": list(self._open),
        }
        return encode_body("audit.segment", fields)

    def _refuse(self, batch: Iterable[_Entry]) -> None:
        """Remember what could not be written, to say so in the next record that can."""
        with self._lock:
            for entry in batch:
                self._refused_count += 1
                if entry.closes and entry.decision is not None:
                    self._open.pop(entry.decision, None)  # the gap record names it
                if len(self._refused) < _MAX_NAMED:
                    self._refused.append((entry.event, entry.decision))


def _follow(open_ids: dict[str, None], batch: Iterable[_Entry]) -> None:
    """Which decisions are open after these records."""
    for entry in batch:
        if entry.decision is not None:
            if entry.opens:
                open_ids[entry.decision] = None
            elif entry.closes:
                open_ids.pop(entry.decision, None)
