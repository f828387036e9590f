"""The mark that stands in front of each prompt on its way to the tokenizer."""

from __future__ import annotations

import secrets

__all__ = ["new_mark"]


def new_mark() -> str:
    """Make a mark: lower-case letters only, so that cleaning, templates and lower-casing leave it alone.

    Example:
        >>> new_mark().isalpha(), new_mark() == new_mark()
        (True, False)
    """
    return "zqx" + "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(24)) + "xqz"
