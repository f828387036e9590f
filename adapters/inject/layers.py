"""Pipelines that do not call their text encoder: a method of their own runs its layers, one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .origin import decoded
from .received import Received
from .without_prefix import without_prefix

__all__ = ["compared"]

Method = Callable[[Any, Tensor, Tensor, Tensor], list[Tensor]]
"""Given a text encoder, ids, attention mask and positions, each of shape (B, L), it returns what layers give, each of
shape (B, L, D)."""


def compared(method: Method, received: Received) -> Method:
    """The same method, while a prefix is in force: its answer to rows with the prefix is compared with that without.

    Args:
        method: Of the pipeline.
        received: Of its text encoder.
    """

    @functools.wraps(method)
    def read(text_encoder: Any, coded: Tensor, mask: Tensor, positions: Tensor) -> list[Tensor]:
        input_ids = decoded(coded)
        with received.reading(coded):
            answers = method(text_encoder, input_ids, mask, positions)
        has_prefix = (input_ids < 0).any(-1)
        if has_prefix.any():
            given = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
            _, plain = without_prefix((), given, received.padding or 0)
            with received.comparing():
                others = method(text_encoder, *(plain[name] for name in given))
            received.compare((answers[-1],), (others[-1],), has_prefix)
        return answers

    return read
