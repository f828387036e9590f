"""What peers that train share: a copy of the UNet of which a few weights learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apl_guard.errors import TrainingFailed
from apl_guard.trainer.model.pipeline import frozen
from apl_guard.trainer.peers.weights import with_own_unet


@contextmanager
def learner(
    pipe: Any, which: Callable[[Any], Mapping[str, nn.Parameter]], lr: float
) -> Iterator[tuple[Any, Callable[[Tensor], None]]]:
    """A copy of a pipe's UNet with Adam over some of its weights; the pipe itself is held still meanwhile.

    Args:
        pipe: The model.
        which: UNet → name → parameter that learns.
        lr: Learning rate.

    Returns:
        The copy, and what goes one step down a loss; this raises `TrainingFailed` where the loss is not a number.
    """
    with frozen(pipe):
        own = with_own_unet(pipe)
        with frozen(own):
            learning = list(which(own.unet).values())
            for parameter in learning:
                parameter.requires_grad_(True)
            adam = torch.optim.Adam(learning, lr=lr)

            def step(loss: Tensor) -> None:
                if not torch.isfinite(loss):
                    raise TrainingFailed(f"the loss is {loss.item()}; expected a number. Lower the learning rate")
                adam.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                adam.step()

            yield own.unet, step
