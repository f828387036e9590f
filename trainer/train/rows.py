"""Vectors of an attacker in rows of token ids, written as the prefix is: as negative ids.

Letters: B rows, L places in a row, N prefix vectors, K vectors of the attacker in each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["insert_vectors", "length_of", "sentinels"]


def sentinels(rows: int, n: int, k: int) -> Tensor:
    """The ids of the attacker's vectors, shape (B, K): row b has those that follow on the prefix and on row b − 1.

    Example:
        >>> sentinels(2, n=10, k=2).tolist()
        [[-11, -12], [-13, -14]]
    """
    return -(n + 1 + torch.arange(rows * k).view(rows, k))


def insert_vectors(ids: Tensor, place: int, inserted: Tensor, end: int) -> Tensor:
    """Move what stands from a place on to the right and put other ids there; what does not fit is cut at the end.

    Args:
        ids: Shape (B, L).
        place: Where.
        inserted: Shape (B, K).
        end: Id of the end token, which every row keeps.

    Returns:
        Shape (B, L).

    Example:
        >>> insert_vectors(torch.tensor([[0, 5, 6, 9]]), 1, torch.tensor([[-1]]), end=9).tolist()
        [[0, -1, 5, 9]]
    """
    moved = torch.cat([ids[:, :place], inserted.to(ids), ids[:, place:]], dim=1)[:, : ids.shape[1]]
    is_cut = (moved == end).sum(1) == 0
    moved[is_cut, -1] = end
    return moved


def length_of(tokenizer: Any, text: str) -> int:
    """How many tokens a text has, without start and end."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
