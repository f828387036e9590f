"""Text of strangers, made safe for a terminal and a log."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, limit: int | None = 60) -> str:
    """The same text without letters that a terminal would obey, or that begin a line, cut to a few characters.

    Args:
        text: From somebody's file or request.
        limit: The most characters; None leaves all of them.

    Example:
        >>> printable("evil" + chr(27) + "[2J"), printable("Jürgen", limit=3)
        ('evil�[2J', 'Jür')
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:limit])
