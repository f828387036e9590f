"""Ids of calls: UUIDs of version 7 (RFC 9562), in hex. They sort by time."""

from __future__ import annotations

import os
import time

__all__ = ["new_id"]

_BYTES = 10
_AT_ONCE = 256
_fresh: list[str] = []
"""The random parts of ids to come."""


def new_id() -> str:
    """A new id: 48 bits of milliseconds since 1970 and 74 random bits.

    Example:
        >>> import uuid
        >>> uuid.UUID(new_id()).version
        7
    """
    try:
        random = _fresh.pop()
    except IndexError:
        # For many ids at once: asking the system gives up Python's lock, and each time another thread runs on first.
        random, *more = _randoms(os.urandom(_BYTES * _AT_ONCE).hex())
        _fresh.extend(more)
    return f"{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}{random}"


def _randoms(digits: str) -> list[str]:
    """Random digits, cut into the last twenty of each id, with version and variant in their places."""
    parts = (digits[k : k + 2 * _BYTES] for k in range(0, len(digits), 2 * _BYTES))
    return [f"7{part[1:4]}{'89ab'[int(part[4], 16) & 3]}{part[5:]}" for part in parts]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh.clear)  # the parent goes on with them
