"""The files of records in a log: what they are called, whose they are, and what follows their last record."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apl_guard.audit import locks

__all__ = ["Rest", "describe_rest", "is_alive", "segment_name", "writers_in"]

_NAME = re.compile(r"([0-9a-f]{24})\.([0-9]{6})\.jsonl")
_CHUNK = 1 << 20


def segment_name(writer: str, number: int) -> str:
    """Name of a file of records."""
    return f"{writer}.{number:06d}.jsonl"


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


def is_alive(folder: Path, writer: str, numbers: list[int]) -> bool:
    """Whether the process of a writer still holds it.

    Raises:
        OSError: It cannot be opened.
    """
    if not locks.HAS_LOCKS:
        return False  # no guard can write here, so this is a copy
    handle = os.open(folder / segment_name(writer, numbers[0]), os.O_RDONLY)
    try:
        return locks.is_locked(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Rest:
    """What follows the last whole record of a segment, of any length."""

    fields: Mapping[str, Any]
    """A recovery records it so, and `verify` looks for just that."""
    has_lines: bool
    has_zeros: bool
    """As a disk leaves them that had room and no content yet."""


def describe_rest(number: int, stream: BinaryIO, read: bytes = b"") -> Rest:
    """Look at the rest of a segment.

    Args:
        number: Of the segment.
        stream: The segment, from where its rest goes on.
        read: What was read of the rest already.
    """
    digest, length = hashlib.sha256(), 0
    has_lines = has_zeros = False
    while read or (read := stream.read(_CHUNK)):
        digest.update(read)
        length += len(read)
        has_lines, has_zeros = has_lines or b"\n" in read, has_zeros or b"\0" in read
        read = b""
    return Rest({"segment": number, "bytes": length, "sha256": digest.hexdigest()}, has_lines, has_zeros)
