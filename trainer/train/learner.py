"""The prefix while it learns: P under Adam, with the running mean that is evaluated and kept.

Letters: N prefix vectors; D the widths of all text encoders together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.train.checkpoint import State

__all__ = ["Learner"]


class Learner:
    """What takes the steps.

    Args:
        state: Where the run is: its vectors, and the moments of Adam.
        scales: How large a step is in each column of P, shape (D,), on the device of the run.
        config: Learning rate and running mean.
    """

    def __init__(self, state: State, scales: Tensor, config: TrainConfig) -> None:
        self._scales, self._decay = scales, config.ema_decay
        self._Q = (state.vectors.to(scales.device) / scales).requires_grad_(True)  # (N, D): P in units of each encoder
        self._adam = torch.optim.Adam([self._Q], lr=config.lr)
        self._adam.state[self._Q] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": state.exp_avg.to(scales.device),
            "exp_avg_sq": state.exp_avg_sq.to(scales.device),
        }
        self.mean = state.mean.to(scales.device)
        """The running mean of P, shape (N, D)."""

    @property
    def P(self) -> Tensor:  # noqa: N802 - the letter of the paper
        """The prefix as it is now, shape (N, D), with a graph that leads to what learns."""
        return self._Q * self._scales

    def step(self, loss: Tensor, lr: float) -> None:
        """Go one step down a loss."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._adam.step()
        with torch.no_grad():
            self.mean = self.P if not self._decay else self.mean.lerp(self.P, 1 - self._decay)

    def store(self, state: State) -> None:
        """Write into the state what the next step depends on."""
        moments = self._adam.state[self._Q]
        state.vectors, state.mean = self.P.detach(), self.mean
        state.exp_avg, state.exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
