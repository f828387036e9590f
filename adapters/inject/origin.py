"""Where each token comes from, told by its id on the way from the tokenizer to the text encoder.

A row without the prefix is right for a negative prompt and wrong for a part of a prompt, and the two may say the same.
So the tokens of a prompt carry a code until the text encoder reads them, whatever the pipeline does to the rows in
between: what is cut off from its prefix shows.

    −1 … −N           the prefix
    −(2²⁰ + token)    of a prompt, tokenized with its mark
    −(2²¹ + token)    of a text without a mark that says what a prompt says, such as a piece of one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Origins", "Source", "decoded", "is_of_prompt", "is_sentinel", "token_of"]

_PROMPT = 1 << 20  # beyond every vocabulary and every prefix
_PIECE = 1 << 21


@dataclass(frozen=True)
class Source:
    """What a call says of the texts that it does not mark as prompts."""

    plain_mark: str
    """Stands in front of texts that are no prompts and say what one says."""
    is_prompt: Callable[[str], bool]
    """Says of a text without a mark whether it is a part of a prompt all the same."""


def is_sentinel(i: int) -> bool:
    """Whether an id stands for a vector of the prefix."""
    return -_PROMPT < i < 0


def is_of_prompt(i: int) -> bool:
    """Whether an id stands for a token of a prompt, or of a text that says what one says."""
    return i <= -_PROMPT


def token_of(i: int) -> int:
    """The token that an id stands for; sentinels stay as they are."""
    return -i % _PROMPT if is_of_prompt(i) else i


def decoded(ids: Tensor) -> Tensor:
    """The same for a tensor of ids.

    Example:
        >>> decoded(torch.tensor([7, -1, -2, -(1 << 20) - 5, -(1 << 21) - 6])).tolist()
        [7, -1, -2, 5, 6]
    """
    return torch.where(ids <= -_PROMPT, -ids % _PROMPT, ids)


class Origins:
    """The origins of all that one tokenizer makes in one call.

    Args:
        source: Of the call.
        tokenizer: It, without a mark.
    """

    def __init__(self, source: Source, tokenizer: Any) -> None:
        self._source = source
        special = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._framing = {*tokenizer.all_special_ids, *special, tokenizer.pad_token_id}
        """The ids that stand for no text; some tokenizers in Python do not say of their padding that it is special."""
        self._known: dict[str, None] = {}
        """The ids of the texts that were tokenized without the prefix."""

    def own(self, row: Sequence[int]) -> list[int]:
        """A row of a prompt, coded: what stands behind its prefix comes from it."""
        start = next((place for place, i in enumerate(row) if i < 0), len(row))
        return [*row[:start], *(i if i < 0 or i in self._framing else -_PROMPT - i for i in row[start:])]

    def note(self, texts: Any, ids: Any, *, plain: bool = False) -> None:
        """Take note of texts without the prefix, and code the ids of those that are parts of a prompt in place.

        Args:
            texts: A list of them; anything else is left as it is.
            ids: A row of ids for each, as lists or a tensor, or the one row of a single text.
            plain: Whether they are no prompts, whatever they say.
        """
        if not isinstance(texts, list | tuple) or not len(ids):
            return
        rows = [ids] if isinstance(ids[0], int) else ids
        own = [not plain and isinstance(text, str) and self._source.is_prompt(text) for text in texts]
        if len(rows) != len(texts):  # cut into several rows each, and nobody says which row is of which text
            texts, own = [next(iter(texts), "")] * len(rows), [any(own)] * len(rows)
        for text, row, is_piece in zip(texts, rows, own, strict=True):
            if not isinstance(text, str):
                continue
            self._known[self._content([int(i) for i in row])] = None
            if is_piece:
                for place, i in enumerate(row):
                    if int(i) not in self._framing:
                        row[place] = -_PIECE - int(i)

    def may_be_plain(self, row: Sequence[int]) -> bool:
        """Whether a row without the prefix may run: it is empty, or of texts that are no prompts, one behind the other,
        one of them cut perhaps. Of helpers that tokenize each text in pieces, some of a negative prompt may say what a
        prompt says; not all."""
        codes = [i for i in row if i not in self._framing]
        if any(-_PIECE < i <= -_PROMPT for i in codes) or (codes and all(i <= -_PIECE for i in codes)):
            return False
        content = self._content([token_of(i) for i in codes])
        texts = self._known.keys() - {""}
        ends, starts = [0], [len(content)]  # both grow while they are gone through
        for start in starts:
            further = {start - len(text) for text in texts if content.endswith(text, 0, start)}
            starts += sorted(further.difference(starts))
        if 0 in starts:
            return True
        for end in ends:
            rest = content[end:]
            if any(rest in text for text in texts | {""}):
                return True
            cut = max((_alike(text, rest) for text in texts), default=0)
            if any(end < start <= end + cut for start in starts):
                return True
            further = {end + len(text) for text in texts if rest.startswith(text)}
            ends += sorted(further.difference(ends))
        return False

    def _content(self, row: Sequence[int]) -> str:
        """The ids that stand for text, one behind the other."""
        return "".join(f" {i}," for i in row if i not in self._framing)


def _alike(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
