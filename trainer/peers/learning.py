"""What peers that train share: a copy of the UNet of which a few weights learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from apl_guard.errors import TrainingFailed
from apl_guard.trainer.model.pipeline import frozen
from apl_guard.trainer.peers.weights import with_own_unet


class Learner:
    """A copy of a pipe's UNet with Adam over some of its weights; the pipe itself is held still meanwhile.

    Args:
        pipe: The model.
        which: UNet → name → parameter that learns.
        lr: Learning rate.
    """

    def __init__(self, pipe: Any, which: Callable[[Any], Mapping[str, nn.Parameter]], lr: float) -> None:
        self._held = ExitStack()
        self._held.enter_context(frozen(pipe))
        own = with_own_unet(pipe)
        self.unet = own.unet
        self._held.enter_context(frozen(own))
        self._learning = list(which(self.unet).values())
        for parameter in self._learning:
            parameter.requires_grad_(True)
        self._adam = torch.optim.Adam(self._learning, lr=lr)

    def step(self, loss: Tensor) -> None:
        """Go one step down a loss.

        Raises:
            TrainingFailed: The loss is not a number.
        """
        if not torch.isfinite(loss):
            raise TrainingFailed(f"the loss is {loss.item()}; expected a number. Lower the learning rate")
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._adam.step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()
