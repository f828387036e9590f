"""The targets ε(z_t, t, c₂). They do not depend on the prefix, so they can be computed once and kept.

Letters: B examples in a batch; latents (C, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Batch, Data
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.prompt_embeds import PromptEmbeds


class Targets:
    """Noised latents and targets of batches.

    Args:
        pipe: The model, frozen.
        data: The examples.
        config: How the model is asked.
        keep: Whether to remember the target of a batch, because it comes again.
    """

    def __init__(self, pipe: Any, data: Data, config: TrainConfig, keep: bool) -> None:
        self._family, self._data, self._keep = family_of(pipe, config), data, keep
        self._embeds = PromptEmbeds(pipe, [*data.identity.neutrals, *data.generic.neutrals], config)
        self._known: dict[int, Tensor] = {}

    def __call__(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """Compute z_t and ε(z_t, t, c₂), or recall the latter.

        Args:
            batch: What to look at.
            index: Number of the batch; equal numbers must mean equal batches.

        Returns:
            Two tensors of shape (B, C, H, W), on the model's device.
        """
        device = self._family.device
        identity, generic = self._data.identity, self._data.generic
        z = torch.cat([identity.latents[batch.identity], generic.latents[batch.generic]]).to(device)
        t = batch.t.to(device)
        z_t = self._family.process.noised(z, batch.noise.to(device), t)
        if index in self._known:
            return z_t, self._known[index].to(device)
        neutrals = [identity.neutrals[k] for k in batch.identity] + [generic.neutrals[k] for k in batch.generic]
        with torch.no_grad():
            eps_neutral = self._family.predict(z_t, t, self._embeds(neutrals))
        if self._keep:
            self._known[index] = eps_neutral.cpu()
        return z_t, eps_neutral
