"""What the denoiser is told of many texts, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import joined
from apl_guard.trainer.model.families import family_of

__all__ = ["PromptEmbeds"]


class PromptEmbeds:
    """What the denoiser is told of many texts without a prefix, each text encoded once and kept in main memory.

    Args:
        pipe: The model.
        texts: May repeat.
        config: How the model is asked; default: the defaults.
    """

    @torch.no_grad()
    def __init__(self, pipe: Any, texts: Sequence[str], config: TrainConfig | None = None) -> None:
        unique = list(dict.fromkeys(texts))
        self._row = {text: k for k, text in enumerate(unique)}
        family = family_of(pipe, config)
        batch = 64 if family.t5_length is None else family.config.sampling_batch  # T5 is large
        parts = [family.tokenize(unique[k : k + batch], 0) for k in range(0, len(unique), batch)]
        self._device = family.device
        self._table = joined([family.embed(part).to(torch.device("cpu")) for part in parts])

    def __call__(self, texts: Sequence[str]) -> Any:
        """Of B texts, on the model's device."""
        return self._table[[self._row[text] for text in texts]].to(self._device)
