"""What a text encoder really received and gave while a prefix was in force for it. It becomes the receipt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .origin import decoded, is_of_prompt, is_sentinel

__all__ = ["Received"]


class Received:
    """What a text encoder really received and gave during one block of `injected`.

    Args:
        vectors: The prefix, shape (N, D).
        padding: Id of the padding token.
    """

    def __init__(self, vectors: Tensor, padding: int | None) -> None:
        self.vectors = vectors
        self.padding = padding
        self._ids: list[tuple[Tensor, Tensor | None]] = []
        """What the embedding layer was given, and the same with the codes, from what the text encoder was given."""
        self._changes: list[Tensor] = []
        self._is_comparing = False
        self._coded: Tensor | None = None

    @contextmanager
    def reading(self, coded: Tensor) -> Iterator[None]:
        """While the text encoder reads these rows, of which its embedding layer is given the tokens without codes."""
        self._coded = coded.clone()  # whoever gave them may write other rows into the same tensor
        try:
            yield
        finally:
            self._coded = None

    def take(self, input_ids: Tensor) -> None:
        """Take note of one batch of rows, shape (B, L)."""
        # Kept as tensors: reading them now would make a GPU wait in the middle of a call.
        if not self._is_comparing:
            self._ids.append((input_ids.clone(), self._coded))

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """While the same rows run once more without the prefix, they are not taken note of."""
        self._is_comparing = True
        try:
            yield
        finally:
            self._is_comparing = False

    def compare(self, output: Any, plain: Any, has_prefix: Tensor, *, tokens_first: bool = False) -> None:
        """Take note of how far the answer to rows with the prefix is from that to the same rows without.

        Args:
            output: What the text encoder gave.
            plain: What it gave without the prefix.
            has_prefix: Which rows have one, shape (B,).
            tokens_first: Whether the answers are of shape (L, B, D) and not (B, L, D).
        """
        ours, theirs = _answer(output), _answer(plain)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return
        if tokens_first:
            ours, theirs = ours.transpose(0, 1), theirs.transpose(0, 1)
        rows = has_prefix.to(ours.device)
        ours, theirs = ours[rows].float().flatten(1), theirs[rows].float().flatten(1)
        self._changes.append((ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp(min=1e-12))

    @property
    def rows(self) -> tuple[int, ...]:
        """The number of prefix vectors in each row that had any, in the order of the calls; 0 where they were not
        in order, one behind the other."""
        return tuple(_in_order(row) for row in self._rows() if any(map(is_sentinel, row)))

    @property
    def plain_rows(self) -> list[list[int]]:
        """The rows that had no prefix, their ids coded as the tokenizer gave them."""
        return [row for row in self._rows() if not any(map(is_sentinel, row))]

    @property
    def changes(self) -> tuple[float, ...]:
        """‖with − without‖ / ‖without‖ of the text encoder's answer, for each row that had a prefix."""
        return tuple(float(f"{c:.6g}") for changes in self._changes for c in changes.tolist())

    def _rows(self) -> list[list[int]]:
        return [row for pair in self._ids for row in _rows_in(*pair)]


def _rows_in(given: Tensor, coded: Tensor | None) -> list[list[int]]:
    """The rows that an embedding layer was given; with their codes, if the text encoder handed on what it was given."""
    is_handed_on = coded is not None and torch.equal(decoded(coded), given.to(coded.device))
    ids = coded if coded is not None and is_handed_on else given
    rows: list[list[int]] = ids.reshape(-1, ids.shape[-1]).tolist()
    return rows


def _in_order(row: list[int]) -> int:
    """N where a row holds −1 … −N once, one behind the other, and nothing of a prompt before them; else 0."""
    found = [i for i in row if is_sentinel(i)]
    first = row.index(found[0])
    unbroken = row[first : first + len(found)] == list(range(-1, -len(found) - 1, -1))
    return len(found) if unbroken and not any(map(is_of_prompt, row[:first])) else 0


def _answer(output: Any) -> Tensor | None:
    """What of a text encoder's output is compared, with the prompts in the first dimension."""
    hidden = getattr(output, "hidden_states", None)
    if hidden is not None:
        answer = hidden[-1]
    else:
        answer = output[0] if isinstance(output, tuple) or hasattr(output, "to_tuple") else output
    return answer if isinstance(answer, Tensor) else None
