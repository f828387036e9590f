"""The periodic evaluation: how much of the identity gap is closed, and how far generic prompts drift.

    gap closed     1 − d(name with prefix, neutral) / d(name, neutral)       1 is best
    generic drift  d(generic with prefix, generic) / d(generic, empty)       0 is best

d is the mean squared difference of what the model says on the same noised latents. Latents, noise and noise levels
are fixed for a run, so that two evaluations differ by the prefix alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Data, Examples
from apl_guard.trainer.model.condition import Condition, Prompts
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.prompt_embeds import PromptEmbeds
from apl_guard.trainer.train.loss import distance


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a prefix."""

    gap_closed: float
    generic_drift: float

    @property
    def score(self) -> float:
        """What decides which prefix is kept: the gap closed minus the generic drift."""
        return self.gap_closed - self.generic_drift


@dataclass(frozen=True)
class _Half:
    """What is measured on one half of the data, M examples. All but the prefix is fixed."""

    ids: Tensor
    """Token ids of the prompts, with room for the prefix, shape (M, S, L)."""
    z_t: Tensor
    """Shape (M, C, H, W)."""
    t: Tensor
    """Shape (M,)."""
    eps_neutral: Tensor
    """ε(z_t, t, c₂), shape (M, C, H, W)."""
    whole: float
    """The distance that stands for the whole: of the answer to the prompt itself (identity data), or to the empty
    prompt (generic data)."""


class Gauge:
    """Measures prefixes against the held-aside examples.

    Args:
        pipe: The model, frozen.
        data: The examples.
        config: Noise levels, number of vectors, seed, and how the model is asked.
    """

    def __init__(self, pipe: Any, data: Data, config: TrainConfig) -> None:
        self._family = family_of(pipe, config)
        self._batch = config.identity_batch + config.generic_batch
        self._identity = self._prepare(data.held_identity, None, config, seed=config.seed * 2)
        self._generic = self._prepare(data.held_generic, "", config, seed=config.seed * 2 + 1)

    @torch.no_grad()
    def _prepare(self, half: Examples, reference: str | None, config: TrainConfig, seed: int) -> _Half:
        """Draw noise and noise levels; `reference` is the prompt whose distance is the whole, None each one's own."""
        process, device = self._family.process, self._family.device
        rng = torch.Generator().manual_seed(seed)
        # Evenly spread over the noise levels, in an order of chance.
        low, high = config.timestep_low * process.levels, config.timestep_high * process.levels
        spread = low + (torch.arange(len(half)) + 0.5) / len(half) * (high - low)
        t = spread.long()[torch.randperm(len(half), generator=rng)].to(device)
        noise = torch.randn(half.latents.shape, generator=rng).to(device)
        z_t = process.noised(half.latents.to(device), noise, t)
        others = half.prompts if reference is None else (reference,) * len(half)
        embeds = PromptEmbeds(self._family.pipe, [*half.neutrals, *others], config)
        eps_neutral = self._predict(z_t, t, embeds(half.neutrals))
        whole = distance(self._predict(z_t, t, embeds(others)), eps_neutral).mean().item()
        ids = self._family.tokenize(half.prompts, config.n_vectors)
        return _Half(ids, z_t, t, eps_neutral, whole)

    def _predict(self, z_t: Tensor, t: Tensor, c: Condition | Prompts) -> Tensor:
        parts = [slice(k, k + self._batch) for k in range(0, len(z_t), self._batch)]
        return torch.cat([self._family.predict(z_t[s], t[s], c[s]) for s in parts])

    @torch.no_grad()
    def __call__(self, prefix: Tensor) -> Measurement:
        """Measure a prefix of shape (N, D)."""
        left, drift = self._share(self._identity, prefix), self._share(self._generic, prefix)
        return Measurement(gap_closed=1 - left, generic_drift=drift)

    def _share(self, half: _Half, prefix: Tensor) -> float:
        """d(prompt with prefix, neutral) as a share of the whole."""
        parts = zip(*(torch.split(part, self._batch) for part in (half.z_t, half.t, half.ids)), strict=True)
        eps = torch.cat([self._family.predict(z_t, t, self._family.embed(ids, prefix)) for z_t, t, ids in parts])
        left = distance(eps, half.eps_neutral).mean().item()
        # A model that answers every prompt alike has no gap to close and nothing to drift by.
        return left / half.whole if half.whole > 0 else float(left > 0)
