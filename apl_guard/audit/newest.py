"""The newest records of a log, in the order in which they were written. No clock has a say in it.

Checkpoints are counted over the whole log: the first one that covers a record tells when it was written beside those
of other writers. Within a writer, the order is by number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from heapq import nlargest
from math import inf
from pathlib import Path
from typing import Any

from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.index import Index
from apl_guard.audit.witness import CHECKPOINTS

__all__ = ["newest"]

_LOOK_BACK = 1 << 20
"""Bytes of checkpoints, more than a thousand. Writers without one among these come first, by their clocks."""


def newest(index: Index, log: Path, count: int) -> list[dict[str, Any]]:
    """The newest records, the last one last.

    Args:
        index: The index of the log, up to date.
        log: The folder of the log.
        count: How many.

    Raises:
        StorageFailed: The index cannot be read.
    """
    places = index.places()
    found = index.newer({writer: last - count for writer, last in places.items()}, limit=count * len(places))
    return [record for _, record in nlargest(count, _placed(found, _sealed(log)), key=lambda each: each[0])][::-1]


def _placed(
    records: Iterable[dict[str, Any]], sealed: Mapping[str, list[tuple[int, int]]]
) -> Iterator[tuple[tuple[float, str, str, int], dict[str, Any]]]:
    """Each record, of each writer in order, with what tells its place beside those of others."""
    latest: dict[str, str] = {}
    for record in records:
        writer, seq = record["writer"], record["seq"]
        latest[writer] = max(latest.get(writer, ""), str(record["timestamp"]))
        yield (_place(sealed.get(writer), seq), latest[writer], writer, seq), record


def _place(sealed: list[tuple[int, int]] | None, seq: int) -> float:
    """The number of the checkpoint that first covers a record; of what is not sealed yet, one after all."""
    if sealed is None:
        return -1
    at = bisect_right(sealed, (seq, inf))
    return sealed[at][1] if at < len(sealed) else inf


def _sealed(log: Path) -> dict[str, list[tuple[int, int]]]:
    """Writer → how far each of the newest checkpoints covers it, and its number."""
    found: dict[str, list[tuple[int, int]]] = {}
    try:
        with (log / CHECKPOINTS).open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _LOOK_BACK))
            lines = stream.read().split(b"\n")
    except OSError:
        return {}
    for line in lines:
        try:
            checkpoint = Checkpoint.parse(line)
        except ValueError:
            continue  # cut off at the start or the end, or damaged; `verify` names it
        found.setdefault(checkpoint.writer, []).append((checkpoint.size, checkpoint.number))
    return found
