"""One answer of a pipeline, by its own code.

What a model is told of a prompt, in which order its latents lie, and what a noise level is called, a pipeline of
diffusers knows itself. In one place all of them are alike: they hand a scheduler what the model says. So one answer is
one call of the pipeline with a scheduler that stands still:

    1. the prompt goes in as in a guarded call, with the prefix in front (`adapters.diffusers.prefixed`);
    2. `prepare_latents`, a method or a block, gives z_t;
    3. the only time step is that of t;
    4. `step` is handed ε(z_t, t, c), and the call ends there.

What comes out has passed through the pipeline's own guidance, and gradients lead from it to the prefix.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from apl_guard.adapters.diffusers.calling import run
from apl_guard.adapters.diffusers.modular import is_modular
from apl_guard.adapters.diffusers.prefixed import prefixed
from apl_guard.adapters.diffusers.shared_models import with_models_alone
from apl_guard.adapters.diffusers.view import view_of
from apl_guard.request import GenerationRequest

__all__ = ["AnsweredError", "Seen", "called", "clean_latents", "first_answer"]


class AnsweredError(BaseException):
    """The model has answered. Raised through the pipeline, which ends there.

    It is no `Exception`, for pipelines may log these.
    """


@dataclass
class Seen:
    """What was seen of a call."""

    answer: Tensor = field(init=False)
    """What the model says, shape (B, …)."""
    sample: Tensor = field(init=False)
    """Of which latents, same shape."""
    sigmas: Tensor = field(init=False)
    """σ of all levels that the call would visit, from the noisiest on. Only schedulers of flows have it."""
    times: Tensor = field(init=False)
    """What it calls these levels."""
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Slot → the prefix vectors in each row that its text encoder received."""


def first_answer(
    pipe: Any,
    request: GenerationRequest,
    vectors: Mapping[str, Tensor],
    level: tuple[Tensor, Tensor] | None = None,
    z_t: Tensor | None = None,
) -> Seen:
    """Run a pipeline until its scheduler is handed an answer.

    Args:
        pipe: The pipeline.
        request: The call.
        vectors: Slot → the prefix, shape (N, D of this slot); empty for none.
        level: The time and σ of the noise level; None: the first that the call visits.
        z_t: Where it starts, shape (B, …); None: where it likes.
    """
    seen = Seen()
    with called(pipe, request, vectors) as (view, arguments, received):
        view.__dict__["scheduler"] = _standing_still(view.scheduler, seen, level)
        if z_t is not None:
            _start_from(view, z_t)
        with suppress(AnsweredError), with_models_alone(view), _GradientsPass(view):
            run(view, arguments)
    seen.rows = {slot: each.rows for slot, each in received.items()}
    return seen


def clean_latents(pipe: Any, request: GenerationRequest) -> Tensor:
    """The latents of what a pipeline draws, as its scheduler has them, shape (B, …)."""
    latents: list[Tensor] = []
    with called(pipe, request, {}) as (view, arguments, _):
        view.__dict__["scheduler"] = _recording(view.scheduler, latents)
        with with_models_alone(view):
            run(view, arguments)
    return latents[0]


@contextmanager
def called(
    pipe: Any, request: GenerationRequest, vectors: Mapping[str, Tensor]
) -> Iterator[tuple[Any, dict[str, Any], Mapping[str, Any]]]:
    """What is called in place of the pipe, its arguments, and what text encoders receive of a prefix."""
    if not vectors:
        yield view_of(pipe, lambda _, tokenizer: tokenizer), dict(request.arguments), {}
        return
    with prefixed(pipe, request, vectors, compare=False) as call:
        yield call.view, {**request.arguments, **call.texts}, call.received


def _start_from(view: Any, z_t: Tensor) -> None:
    """Have a view begin with these latents."""
    if is_modular(type(view)):
        view.__dict__["_blocks"] = _giving_blocks(view.blocks, z_t)
    else:
        view.__dict__["prepare_latents"] = _giving(view.prepare_latents, z_t)


def _giving_blocks(blocks: Any, z_t: Tensor) -> Any:
    """The same, with other blocks in place of those that prepare latents."""
    for name, block in blocks.sub_blocks.items():
        made = _giving_block(block, z_t) if name == "prepare_latents" else _giving_blocks(block, z_t)
        blocks.sub_blocks[name] = made
    return blocks


def _giving_block(block: Any, z_t: Tensor) -> Any:
    """The same, but latents are those that are given."""
    cls = type(block)

    def call(self: Any, components: Any, state: Any) -> tuple[Any, Any]:
        components, state = cls.__call__(self, components, state)
        state.set("latents", z_t.to(state.get("latents")))
        return components, state

    made = copy.copy(block)
    made.__class__ = type(cls.__name__, (cls,), {"__call__": call})
    return made


def _giving(prepare_latents: Callable[..., Any], z_t: Tensor) -> Callable[..., Any]:
    """The same, but latents are those that are given."""

    def prepared(*args: Any, **options: Any) -> Any:
        made = prepare_latents(*args, **options)
        if isinstance(made, Tensor):
            return z_t.to(made)
        return z_t.to(made[0]), *made[1:]

    return prepared


class _GradientsPass(TorchFunctionMode):
    """While it is in force, `torch.no_grad` changes nothing outside the models: pipelines say it of their calls, and of
    parts of them."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        self._hooks: list[RemovableHandle] = []
        self._inside = 0

    def __enter__(self) -> _GradientsPass:
        for model in self._models:
            self._hooks.append(model.register_forward_pre_hook(lambda *_: self._go(1)))
            self._hooks.append(model.register_forward_hook(lambda *_: self._go(-1), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _go(self, deeper: int) -> None:
        self._inside += deeper

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not self._inside:
            return None
        return func(*args, **(kwargs or {}))


def _standing_still(scheduler: Any, seen: Seen, level: tuple[Tensor, Tensor] | None) -> Any:
    """A copy of a scheduler that ends the call at the first answer.

    Args:
        scheduler: The pipeline's own.
        seen: Where to note what it sees.
        level: The time and σ of the only level; None leaves it those that the pipeline asks for.
    """
    still = copy.copy(scheduler)

    @functools.wraps(scheduler.set_timesteps)  # pipelines look at its signature
    def set_timesteps(*args: Any, **options: Any) -> None:
        type(scheduler).set_timesteps(still, *args, **options)
        has_sigmas = hasattr(still, "sigmas")
        if level is None:
            seen.times = still.timesteps
            if has_sigmas:
                seen.sigmas = still.sigmas[:-1]
            return
        time, sigma = level
        still.timesteps = time.to(still.timesteps)[None]
        if has_sigmas:
            still.sigmas = sigma.new_tensor([sigma, 0.0])

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> Any:
        seen.answer, seen.sample = model_output, sample
        raise AnsweredError

    def scale_model_input(sample: Tensor, *_: Any, **__: Any) -> Tensor:
        return sample  # z_t is as the model takes it

    # Of the object, not of a class of its own: some pipelines look at the class.
    still.set_timesteps, still.step, still.scale_model_input = set_timesteps, step, scale_model_input
    return still


def _recording(scheduler: Any, latents: list[Tensor]) -> Any:
    """A copy of a scheduler that keeps the latents of its last step, which are clean at the end of a call."""
    recorder = copy.copy(scheduler)

    @functools.wraps(scheduler.step)  # pipelines look at its signature
    def step(*args: Any, **options: Any) -> Any:
        output = type(scheduler).step(recorder, *args, **options)
        latents[:] = [output[0]]
        return output

    recorder.step = step
    return recorder
