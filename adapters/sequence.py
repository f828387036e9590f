"""The row of token ids that a text encoder gets: what stands in it, in which order, and what is cut.

start … | prefix | the user's tokens, cut at their end | end | padding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apl_guard.errors import InvalidInput, PrefixInvalid

__all__ = ["Frame", "frame_of", "pad", "sequence", "token_ids"]


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text."""

    lead: tuple[int, ...]
    """Ids before the text; for CLIP the start token."""
    end: int
    padding: int
    length: int
    """Length of a padded row, L."""


def frame_of(tokenizer: Any) -> Frame:
    """Find out what a tokenizer puts around a text.

    Raises:
        InvalidInput: It has no end token, no padding token or no maximum length.
    """
    around = token_ids(tokenizer, "")
    where = type(tokenizer).__name__
    if not around or around[-1] != tokenizer.eos_token_id:
        raise InvalidInput("this tokenizer puts no end token after a text", where=where)
    if tokenizer.pad_token_id is None or tokenizer.model_max_length > 1 << 20:
        raise InvalidInput("this tokenizer has no padding token or no maximum length", where=where)
    return Frame(tuple(around[:-1]), around[-1], tokenizer.pad_token_id, tokenizer.model_max_length)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text in its frame, neither cut nor padded."""
    return list(tokenizer(text, verbose=False)["input_ids"])


def sequence(ids: Sequence[int], frame: Frame, n: int, limit: int | None) -> tuple[list[int], int]:
    """Put sentinel ids −1 … −n before the user's tokens, and cut those at their end.

    Args:
        ids: The ids of the text in its frame.
        frame: That frame.
        n: Number of prefix vectors.
        limit: The longest row allowed; None cuts nothing.

    Returns:
        The row, and how many of the user's tokens were cut.

    Raises:
        PrefixInvalid: The prefix leaves no room for a prompt.

    Example:
        >>> frame = Frame(lead=(90,), end=91, padding=0, length=6)
        >>> sequence([90, 1, 2, 3, 91], frame, n=2, limit=6)
        ([90, -1, -2, 1, 2, 91], 1)
    """
    user = list(ids[len(frame.lead) : -1])
    cut = 0
    if limit is not None:
        room = limit - len(frame.lead) - n - 1
        if room < 1:
            raise PrefixInvalid(f"a prefix of {n} vectors leaves no room for a prompt in rows of {limit}")
        cut = max(0, len(user) - room)
        user = user[:room]
    return [*frame.lead, *range(-1, -n - 1, -1), *user, frame.end], cut


def pad(rows: Sequence[Sequence[int]], frame: Frame, length: int) -> list[list[int]]:
    """Fill rows up to one length.

    Example:
        >>> pad([[90, 1, 91]], Frame(lead=(90,), end=91, padding=0, length=6), 5)
        [[90, 1, 91, 0, 0]]
    """
    return [[*row, *[frame.padding] * (length - len(row))] for row in rows]
