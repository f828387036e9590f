"""Another place that keeps the checkpoints, so that the log cannot be shortened or written anew unnoticed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from apl_guard.audit import disk
from apl_guard.audit.checkpoint import LOG_FILE, Identity, key_file
from apl_guard.errors import AuditUnavailable
from apl_guard.storage import sync_folder

__all__ = ["CHECKPOINTS", "Witness"]

CHECKPOINTS = "checkpoints.jsonl"
_CHUNK = 1 << 20


class Witness:
    """A folder, best on another machine, that receives each checkpoint.

    It holds a copy of `checkpoints.jsonl` of each log, in a folder named after the log. Between two calls, the
    copy is the beginning of the original, byte for byte; anything else means that one of them was changed.

    Args:
        folder: The folder. It is made if it is not there.
        log: The folder of the log.
        identity: The identity of the log.
    """

    def __init__(self, folder: Path, log: Path, identity: Identity) -> None:
        self.folder = folder / identity.log
        self._log = log
        self._identity = identity
        self._matched = 0  # the first bytes, of which it is known that they are the same on both sides
        self._has_zeros = False  # behind them, as a power cut leaves them where the disk had room and no content yet
        self._generations = 0

    @property
    def is_new(self) -> bool:
        """Whether it has nothing of a log that has checkpoints. What it receives then, nobody else has witnessed."""
        return (self._log / CHECKPOINTS).exists() and not (self.folder / CHECKPOINTS).exists()

    def compare(self) -> None:
        """Hold the copy against the original, as far as that was not done before. Both may grow meanwhile.

        Raises:
            OSError: One cannot be read.
            AuditUnavailable: The copy is not the beginning of the original.
        """
        source, target = self._log / CHECKPOINTS, self.folder / CHECKPOINTS
        there = target.stat().st_size if target.exists() else 0
        self._has_zeros = False
        if there < self._matched:
            raise self._differs(f"has lost checkpoints: {there} bytes, there were {self._matched}")
        if there == self._matched:
            return
        if not source.exists():
            raise self._differs("holds checkpoints, the log none")
        with source.open("rb") as original, target.open("rb") as copy:
            at = self._matched
            original.seek(at)
            copy.seek(at)
            while at < there:
                ours, theirs = original.read(min(_CHUNK, there - at)), copy.read(min(_CHUNK, there - at))
                if ours != theirs or not ours:
                    written = theirs.rstrip(b"\0")
                    at += len(written)
                    copy.seek(at)
                    self._has_zeros = ours.startswith(written) and _are_zeros(copy)
                    if not self._has_zeros:
                        raise self._differs(
                            "holds checkpoints that the log does not: it was cut off, or goes on from a copy"
                        )
                    break
                at += len(theirs)
        self._matched = at

    def update(self, generations: int) -> None:
        """Bring the copy up to date. Called with the log's lock held.

        Args:
            generations: How many generations of keys are announced. What is prepared may be made anew before it is.

        Raises:
            OSError: It cannot be written.
            AuditUnavailable: It is not the beginning of the original.
        """
        self._copy_public(generations)
        self.compare()
        source, target = self._log / CHECKPOINTS, self.folder / CHECKPOINTS
        if not source.exists():
            return
        if self._has_zeros:
            disk.cut_off(target, self._matched)
        with source.open("rb") as original:
            original.seek(self._matched)
            while chunk := original.read(_CHUNK):
                disk.append_through(target, chunk)
                self._matched += len(chunk)

    def _copy_public(self, generations: int) -> None:
        """The identity and the public keys, so that the copy can be checked on its own."""
        disk.make_folder(self.folder)
        if not (self.folder / LOG_FILE).exists():
            _place(self.folder / LOG_FILE, self._identity.to_json())
        while self._generations < generations and (source := self._log / key_file(self._generations)).exists():
            target = self.folder / key_file(self._generations)
            if not target.exists() or target.stat().st_size != source.stat().st_size:
                _place(target, source.read_bytes())
            self._generations += 1

    def _differs(self, how: str) -> AuditUnavailable:
        return AuditUnavailable(
            f"{self.folder}: the witness {how}; nothing is written until somebody has looked: "
            f"apl-guard audit verify {self._log} --witness {self.folder.parent}"
        )


def _are_zeros(stream: BinaryIO) -> bool:
    """Whether nothing else follows in a file."""
    return not any(chunk.strip(b"\0") for chunk in iter(lambda: stream.read(_CHUNK), b""))


def _place(target: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    disk.append_through(temporary, content)
    temporary.replace(target)
    sync_folder(target.parent)
