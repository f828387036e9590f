"""The loop that every model of the reference world is trained by: resumable, with a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apl_guard.errors import InvalidInput
from apl_guard.trainer.model.number_format import computing_in, precision_of
from apl_guard.trainer.model.pipeline import find_device

from .whole import write_torch

SAVE_EVERY_SECONDS = 60.0


def autocast(where: torch.device | None = None) -> AbstractContextManager[Any]:
    """bfloat16 where the processor computes in it; elsewhere, where it would take ten times as long, float32."""
    where = where or find_device()
    return computing_in(precision_of(where, "auto"), where)


def warmup_cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Average:
    """Exponential moving average of a module's parameters; what is shipped is the average.

    Early on the window is short, so that the random start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's present parameters in."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    weight_decay: float = 1e-2,
    average: bool = False,
    seed: int = 0,
    warmup: int = 100,
    progress: bool = True,
) -> None:
    """Train ``module`` in place for ``steps`` steps of AdamW.

    ``loss(generator)`` draws a batch by the generator and returns the loss and figures to show.  State goes to
    ``checkpoint`` about once a minute, whole or not at all; a killed run goes on from there with the same random
    stream.  With ``average`` the module ends with the moving average of its parameters.

    Raises:
        InvalidInput: The state of the run that was killed is damaged.
        StorageFailed: The state cannot be written; the last one stays.
    """
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup))
    generator = torch.Generator().manual_seed(seed)
    ema = Average(module) if average else None
    start, seconds = 0, 0.0
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["torch_rng"].cpu())
            start, seconds = state["step"], state["seconds"]
            if ema:
                ema.values, ema.updates = state["average"], state["step"]
        except Exception as error:  # torch has no type of its own for a file that is damaged or of another program
            reason = type(error).__name__
            msg = f"the state of an unfinished run is damaged, or of another one ({reason}); delete it to start again"
            raise InvalidInput(msg, where=checkpoint) from error

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": step,
            "seconds": seconds + time.monotonic() - began,
        }
        if ema:
            state["average"] = ema.values
        write_torch(checkpoint, state)

    began = saved = time.monotonic()
    shown: dict[str, float] = {}
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, disable=not progress)
    for step in bar:
        value, figures = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if ema:
            ema.update(module)
        for key, figure in (figures | {"loss": float(value.detach())}).items():
            shown[key] = 0.98 * shown.get(key, figure) + 0.02 * figure
        if step % 20 == 0:
            bar.set_postfix({key: f"{figure:.4f}" for key, figure in shown.items()}, refresh=False)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == steps:
            save(step + 1)
            saved = time.monotonic()
    if ema:
        module.load_state_dict(ema.values)
