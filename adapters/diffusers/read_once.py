"""Arguments that a decision depends on by their value, read once: the pipe is given what was decided about, whatever
the object would say when it is asked again."""

from __future__ import annotations

import operator
from typing import Any

from apl_guard.errors import InvalidInput

from .guidance import SCALES, SERIES

__all__ = ["read_once"]

_NUMBERS = {*SCALES, "clip_skip", "return_index"}
_SEQUENCES = {*SERIES, "text_encoder_out_layers"}
_SWITCHES = {"clean_caption", "skip_text_cleaning"}


def read_once(name: str, value: Any) -> Any:
    """The value of an argument, as plain numbers where a decision depends on them.

    Lists are copied, and so are dicts that hold nothing, for these count as not given.

    Args:
        name: The argument.
        value: Its value.

    Raises:
        InvalidInput: It holds no numbers, where only these can be judged.

    Example:
        >>> read_once("sigmas", (2.5, 1)), read_once("clip_skip", True)
        ((2.5, 1), 1)
    """
    if value is None:
        return None
    if isinstance(value, dict) and not dict.__len__(value):
        return {}
    try:
        if name in _NUMBERS:
            return _number(value)
        if name in _SEQUENCES:
            numbers = [_number(each) for each in value]
            return tuple(numbers) if isinstance(value, tuple) else numbers
        if name in _SWITCHES:
            return bool(value)
    except Exception as error:  # an object of the caller's may raise anything
        expected = "a number" if name in _NUMBERS else "numbers" if name in _SEQUENCES else "True or False"
        raise InvalidInput(f"found {type(value).__name__}; expected {expected}", where=name) from error
    return list(value) if isinstance(value, list) else value


def _number(value: Any) -> int | float:
    if isinstance(value, str | bytes):
        raise TypeError
    try:
        return operator.index(value)
    except TypeError:
        return float(value)
