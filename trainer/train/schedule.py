"""What changes in the course of a run: the learning rate, the weights of the halves, and how far it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.train.checkpoint import State


def share_done(config: TrainConfig, state: State) -> float:
    """How much of the run is behind us, from 0 to 1: by steps, or by time where that runs out first."""
    by_time = 0.0
    if config.time_limit_minutes is not None:
        by_time = state.seconds / (60 * config.time_limit_minutes)
    return max(state.step / config.steps, by_time)


def lr_factor(config: TrainConfig, step: int, done: float) -> float:
    """The share of the full learning rate: a linear warm-up times the schedule.

    Example:
        >>> [lr_factor(TrainConfig(warmup_steps=0), 0, done) for done in (0.0, 0.5)]
        [1.0, 0.5]
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    if config.schedule == "linear":
        return warm * (1 - done)
    return warm * (1 + math.cos(math.pi * done)) / 2


def half_weights(config: TrainConfig, done: float) -> Tensor:
    """The weight of each example, shape (B,): both halves' weights as they are now, summing to 1.

    Example:
        >>> half_weights(TrainConfig(identity_batch=1, generic_batch=2), done=0.0)
        tensor([0.2857, 0.3571, 0.3571])
    """

    def now(start: float, end: float | None) -> float:
        return start if end is None else start + done * (end - start)

    identity = now(config.identity_weight, config.identity_weight_end)
    generic = now(config.generic_weight, config.generic_weight_end)
    total = (identity + generic) or 1.0
    return torch.cat([
        torch.full((config.identity_batch,), identity / total / config.identity_batch),
        torch.full((config.generic_batch,), generic / total / config.generic_batch),
    ])  # fmt: skip
