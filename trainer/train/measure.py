"""The periodic evaluation: how much of the identity gap is closed, and how far generic prompts drift.

    gap closed     1 − d(name with prefix, neutral) / d(name, neutral)       1 is best
    generic drift  d(generic with prefix, generic) / d(generic, empty)       0 is best

d is the mean squared difference of UNet outputs on the same noised latents. Latents, noise and noise levels
are fixed for a run, so that two evaluations differ by the prefix alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apl_guard.adapters.inject import embed, tokenize_with_prefix
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Data, Examples
from apl_guard.trainer.model.pipeline import predict
from apl_guard.trainer.train.loss import distance
from apl_guard.trainer.train.targets import PromptEmbeds, add_noise


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a prefix."""

    gap_closed: float
    generic_drift: float

    @property
    def score(self) -> float:
        """What decides which prefix is kept: the gap closed minus the generic drift."""
        return self.gap_closed - self.generic_drift


class Gauge:
    """Measures prefixes against the held-aside examples.

    Args:
        pipe: The model, frozen.
        data: The examples.
        config: Noise levels, number of vectors and seed.
        dtype: What the UNet computes in.
    """

    def __init__(self, pipe: Any, data: Data, config: TrainConfig, dtype: torch.dtype) -> None:
        self._pipe, self._dtype = pipe, dtype
        self._batch = config.identity_batch + config.generic_batch
        self._halves: list[tuple[Tensor, Tensor, Tensor, Tensor, float]] = []
        for k, (half, reference) in enumerate(((data.held_identity, None), (data.held_generic, ""))):
            self._halves.append(self._prepare(half, reference, config, seed=config.seed * 2 + k))

    @torch.no_grad()
    def _prepare(
        self, half: Examples, reference: str | None, config: TrainConfig, seed: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """ids with room for the prefix, z_t, t, ε(c₂), and the distance that stands for the whole: that of
        the prompt itself (identity data), or of the empty prompt (generic data)."""
        pipe, device = self._pipe, self._pipe.unet.device
        alphas = pipe.scheduler.alphas_cumprod
        rng = torch.Generator().manual_seed(seed)
        # Evenly spread over the noise levels, in an order of chance.
        low, high = config.timestep_low * len(alphas), config.timestep_high * len(alphas)
        spread = low + (torch.arange(len(half)) + 0.5) / len(half) * (high - low)
        t = spread.long()[torch.randperm(len(half), generator=rng)].to(device)
        noise = torch.randn(half.latents.shape, generator=rng).to(device)
        z_t = add_noise(alphas, half.latents.to(device), noise, t)
        others = half.prompts if reference is None else (reference,) * len(half)
        embeds = PromptEmbeds(pipe, [*half.neutrals, *others])
        eps_neutral = self._predict(z_t, t, embeds(half.neutrals))
        whole = distance(self._predict(z_t, t, embeds(others)), eps_neutral).mean().item()
        ids = tokenize_with_prefix(pipe.tokenizer, half.prompts, config.n_vectors)
        return ids, z_t, t, eps_neutral, whole

    def _predict(self, z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        parts = [slice(k, k + self._batch) for k in range(0, len(z_t), self._batch)]
        return torch.cat([predict(self._pipe.unet, z_t[s], t[s], c[s], self._dtype) for s in parts])

    @torch.no_grad()
    def __call__(self, prefix: Tensor) -> Measurement:
        """Measure a prefix of shape (N, D)."""
        shares: list[float] = []
        for ids, z_t, t, eps_neutral, whole in self._halves:
            c = torch.cat([embed(self._pipe.text_encoder, part, prefix) for part in torch.split(ids, self._batch)])
            left = distance(self._predict(z_t, t, c), eps_neutral).mean().item()
            # A model that answers every prompt alike has no gap to close and nothing to drift by.
            shares.append(left / whole if whole > 0 else float(left > 0))
        return Measurement(gap_closed=1 - shares[0], generic_drift=shares[1])
