"""The file of checkpoints as a reader sees it, line by line: a busy service adds one a second for each process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apl_guard.audit.checkpoint import MAX_LINE
from apl_guard.audit.witness import CHECKPOINTS

__all__ = ["CheckpointFile"]

_CHUNK = 1 << 16


@dataclass(frozen=True)
class CheckpointFile:
    """The whole lines that were there when somebody looked. What is written meanwhile is not among them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, CHECKPOINTS).write_bytes(b"one\\ntwo\\nthr")
        ...     found = CheckpointFile.look_at(Path(folder))
        ...     list(found), found.has_rest
        ([b'one', b'two'], True)
    """

    path: Path
    end: int
    """Bytes of its whole lines."""
    has_rest: bool
    """Whether something follows them."""

    @classmethod
    def look_at(cls, folder: Path) -> CheckpointFile:
        """The checkpoints of a log, or of its copy at a witness. Where there is no file, there are none.

        Raises:
            OSError: It cannot be read.
        """
        path = folder / CHECKPOINTS
        if not path.is_file():
            return cls(path, 0, has_rest=False)
        with path.open("rb") as stream:
            size = at = stream.seek(0, 2)
            while at > 0:
                at, end = max(0, at - _CHUNK), at
                stream.seek(at)
                found = stream.read(end - at).rfind(b"\n")
                if found >= 0:
                    return cls(path, at + found + 1, has_rest=at + found + 1 < size)
        return cls(path, 0, has_rest=size > 0)

    def __iter__(self) -> Iterator[bytes]:
        """The lines, without their ends. What is longer than any checkpoint comes in pieces, none of which is one."""
        if not self.end:
            return
        with self.path.open("rb") as stream:
            at = 0
            while at < self.end and (line := stream.readline(MAX_LINE + 2)):
                at += len(line)
                yield line.removesuffix(b"\n")

    def count(self) -> int:
        """How many lines there are."""
        return sum(1 for _ in self)

    def first_that_differs(self, copy: CheckpointFile) -> int | None:
        """The number of the first line of a copy that is not here; None where the copy is a beginning of this.

        Raises:
            OSError: One cannot be read.
        """
        number, at, end = 0, 0, min(self.end, copy.end)
        if end:
            with self.path.open("rb") as ours, copy.path.open("rb") as theirs:
                while at < end:
                    here, there = (stream.read(min(_CHUNK, end - at)) for stream in (ours, theirs))
                    if here != there or not here:
                        pairs = enumerate(zip(here, there, strict=False))
                        same = next((at for at, (a, b) in pairs if a != b), min(len(here), len(there)))
                        return number + here.count(b"\n", 0, same)
                    number += here.count(b"\n")
                    at += len(here)
        return number if copy.end > self.end else None
