"""Times that a user gives."""

from __future__ import annotations

import threading

from apl_guard.errors import InvalidInput

__all__ = ["check_seconds"]


def check_seconds(seconds: float, where: str) -> float:
    """The same time, if a thread can wait for so long: else it would end with the first wait, and nobody would notice.

    Raises:
        InvalidInput: It is no number, not above 0, or longer than centuries.

    Example:
        >>> check_seconds("1", where="seconds")
        Traceback (most recent call last):
        apl_guard.errors.InvalidInput: seconds: found '1'; expected a number of seconds above 0
    """
    try:
        can_wait = 0 < seconds <= threading.TIMEOUT_MAX
    except TypeError:
        can_wait = False
    if not can_wait:
        raise InvalidInput(f"found {seconds!r:.40}; expected a number of seconds above 0", where=where)
    return seconds
