"""What the denoiser of a model is told of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Condition", "Prompts"]


@dataclass(frozen=True)
class Condition:
    """c: what the denoiser is told of B prompts."""

    hidden: Tensor
    """Shape (B, L, D′): the states of the text encoders."""
    pooled: Tensor | None = None
    """Shape (B, D″), for all but Stable Diffusion 1.x and 2.x."""
    sizes: Tensor | None = None
    """Shape (B, 6), for SDXL: height and width in pixels, where the picture is cut, height and width again."""

    def __getitem__(self, rows: Any) -> Condition:
        """Some of the prompts."""
        pooled, sizes = (None if part is None else part[rows] for part in (self.pooled, self.sizes))
        return Condition(self.hidden[rows], pooled, sizes)

    def __len__(self) -> int:
        return len(self.hidden)

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        pooled, sizes = (None if part is None else part.to(device) for part in (self.pooled, self.sizes))
        return Condition(self.hidden.to(device), pooled, sizes)

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """Several, one behind the other.

        Example:
            >>> one = Condition(torch.zeros(1, 77, 8))
            >>> len(Condition.cat([one, one]))
            2
        """

        def joined(parts: list[Tensor | None]) -> Tensor | None:
            found = [part for part in parts if part is not None]
            return torch.cat(found) if found else None

        hidden = torch.cat([condition.hidden for condition in conditions])
        pooled = joined([condition.pooled for condition in conditions])
        return Condition(hidden, pooled, joined([condition.sizes for condition in conditions]))

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The arguments of a call of the pipe that draws these prompts."""
        given = {"prompt_embeds": self.hidden}
        return given if self.pooled is None else {**given, "pooled_prompt_embeds": self.pooled}


@dataclass(frozen=True)
class Prompts:
    """c, where the pipeline itself makes of B prompts what the denoiser is told."""

    texts: tuple[str, ...]
    vectors: Mapping[str, Tensor]
    """Slot → the prefix, shape (N, D of this slot); empty for none."""

    def __getitem__(self, rows: Any) -> Prompts:
        """Some of the prompts."""
        chosen = torch.arange(len(self.texts))[rows].tolist()
        return Prompts(tuple(self.texts[k] for k in chosen), self.vectors)

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device) -> Prompts:
        """The same: texts are on no device."""
        return self

    @classmethod
    def cat(cls, prompts: Sequence[Prompts]) -> Prompts:
        """Several with the same prefix, one behind the other.

        Example:
            >>> len(Prompts.cat([Prompts(("a cat",), {}), Prompts(("a dog", "a car"), {})]))
            3
        """
        return Prompts(tuple(text for each in prompts for text in each.texts), prompts[0].vectors)
