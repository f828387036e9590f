"""What a denoiser is told of many texts, computed once.

Letters: M texts, L tokens in a row, D width of the prompt embeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apl_guard.adapters.inject import encode_prompts
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.families import family_of

__all__ = ["PromptEmbeds", "embeds_of"]


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
        ids = [family.tokenize(unique[k : k + batch], 0) for k in range(0, len(unique), batch)]
        parts = [family.embed(part).to(torch.device("cpu")) for part in ids]
        self._device, self._table = family.device, parts[0].cat(parts)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Of B texts, on the model's device."""
        return self._table[[self._row[text] for text in texts]].to(self._device)


@torch.no_grad()
def embeds_of(pipe: Any, texts: Sequence[str], batch: int) -> Tensor:
    """Prompt embeds (M, L, D) of texts, as a pipeline of Stable Diffusion would compute them, so many at a time."""
    parts = [texts[k : k + batch] for k in range(0, len(texts), batch)]
    return torch.cat([encode_prompts(pipe.text_encoder, pipe.tokenizer, part) for part in parts])
