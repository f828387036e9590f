"""Tokens of CLIP as words that somebody can type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["typable_tokens", "typed", "whole_words"]


def whole_words(tokenizer: Any) -> list[int]:
    """The ids of the tokens that end a word and may be all of it, in order."""
    special = set(tokenizer.all_special_ids)
    return sorted(k for token, k in tokenizer.get_vocab().items() if token.endswith("</w>") and k not in special)


def typable_tokens(tokenizer: Any) -> list[int]:
    """The tokens that can be typed in any order: whole words whose text is read as this one token.

    Pieces of words melt into each other. Of random rows of five tokens of the reference world, one in twenty is read
    as the tokens that it was made of.

    Returns:
        Their ids, in order.
    """
    whole = whole_words(tokenizer)
    read = tokenizer([typed(tokenizer, [k]) for k in whole], add_special_tokens=False)["input_ids"]
    return [k for k, ids in zip(whole, read, strict=True) if ids == [k]]


def typed(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text."""
    # As it stands: tidied-up blanks would join what is apart.
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text.strip()
