"""What a training run would do and cost, found out by timing a few passes of the real model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import check_people
from apl_guard.trainer.data.folders import captions_in, read_prompts
from apl_guard.trainer.data.identities import Identities, load_identities
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import frozen
from apl_guard.trainer.train.adversary import attacked
from apl_guard.trainer.train.loss import apl_loss
from apl_guard.trainer.train.start import generic_prompts, open_to_learn, start_vectors


@dataclass(frozen=True)
class Plan:
    """What a run would do. Times are in seconds on this machine as busy as it is now."""

    people: int
    held_aside: int
    images: int
    """Images to generate, where none of them is in the cache."""
    steps: int
    batch: int
    device: str
    precision: str
    seconds_images: float
    seconds_steps: float
    seconds_evaluation: float
    memory_bytes: int
    """Peak memory of the process (of the GPU, where there is one) while a step was timed."""

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.seconds_images + self.seconds_steps + self.seconds_evaluation

    def __str__(self) -> str:
        return "\n".join([
            f"people      {self.people}, of which {self.held_aside} are held aside for the evaluation",
            f"images      {self.images} to generate: {_clock(self.seconds_images)} (none where cached)",
            f"steps       {self.steps} of {self.batch} examples: {_clock(self.seconds_steps)}",
            f"evaluation  {_clock(self.seconds_evaluation)}",
            f"in all      {_clock(self.seconds)} on {self.device} in {self.precision}",
            f"memory      {self.memory_bytes / 2**30:.1f} GiB",
        ])  # fmt: skip


def make_plan(
    config: TrainConfig,
    model: str | Path | Any,
    identities: str | Path | Identities,
    generic: str | Path | Sequence[str] | None,
) -> Plan:
    """Plan a run: count what there is to do, and time a few passes.

    Args:
        config: All options.
        model: As for `train`.
        identities: As for `train`.
        generic: As for `train`.

    Raises:
        ModelInvalid, IdentitiesInvalid, ConfigInvalid, InvalidInput: What was handed over is wrong.
    """
    people = identities if isinstance(identities, Identities) else load_identities(identities)
    check_people(people, config)
    prompts = generic_prompts(generic, model, config)
    pipe = open_to_learn(model, config)
    family = family_of(pipe, config)
    images, generic_examples = _count_pictures(config, people, prompts)
    held = config.people_held_aside(len(people.identities))
    held_examples = held * config.images_per_identity + config.generic_held_aside(generic_examples)
    size = config.identity_batch + config.generic_batch
    seconds_target, seconds_step = _time_passes(pipe, config, people)
    return Plan(
        people=len(people.identities),
        held_aside=held,
        images=images,
        steps=config.steps,
        batch=size,
        device=str(family.device),
        precision=str(family.dtype).removeprefix("torch."),
        seconds_images=images * config.sampling_steps * family.passes * seconds_target / size,
        seconds_steps=_seconds_of_steps(config, seconds_target, seconds_step),
        seconds_evaluation=(config.steps // config.eval_every + 2) * held_examples * seconds_target / size,
        memory_bytes=_peak_memory(family.device),
    )


def _count_pictures(config: TrainConfig, people: Identities, prompts: Path | Sequence[str]) -> tuple[int, int]:
    """How many pictures are to be generated, and how many generic examples there are."""
    generated = config.images_per_identity * sum(i.images is None for i in people.identities)
    if isinstance(prompts, Path) and prompts.is_dir():
        return generated, min(config.generic_count, len(captions_in(prompts)))
    generic = min(config.generic_count, len(read_prompts(prompts) if isinstance(prompts, Path) else prompts))
    return generated + generic, generic


def _time_passes(pipe: Any, config: TrainConfig, people: Identities) -> tuple[float, float]:
    """Seconds for the targets of a batch, and for a step that computes its own."""
    family = family_of(pipe, config)
    with frozen(pipe, config.gradient_checkpointing):
        P = start_vectors(pipe, config).to(family.device).requires_grad_(True)
        size = config.identity_batch + config.generic_batch
        names = [people.identities[k % len(people.identities)].name for k in range(size)]
        ids = family.tokenize(names, config.n_vectors)
        z_t = torch.randn(size, *family.shape, device=family.device)
        t = torch.full((size,), family.process.levels // 2, device=family.device)
        weight = torch.full((size,), 1 / size, device=family.device)

        def target_pass() -> torch.Tensor:
            with torch.no_grad():
                return family.predict(z_t, t, family.embed(ids, P))

        def step() -> None:
            eps = family.predict(z_t, t, family.embed(ids, P))
            torch.autograd.backward(apl_loss(eps, target_pass(), config.eta, weight))

        return _time(target_pass), _time(step)


def _seconds_of_steps(config: TrainConfig, target: float, step: float) -> float:
    """Seconds for all steps of a run, of those for a target and for a step that computes its own."""
    reused = target * max(0.0, 1 - config.reuse_batches / config.steps) if config.reuse_batches else 0.0
    # A step of the attack costs what a step costs, on a part of the batch, and needs a target of its own.
    share = attacked(config) / (config.identity_batch + config.generic_batch)
    seconds = config.steps * (step - reused + share * (config.adversarial * step + target))
    return seconds if config.time_limit_minutes is None else min(seconds, 60 * config.time_limit_minutes)


def _time(run: Callable[[], object]) -> float:
    """The shorter of two runs after one to warm up, in seconds: the other was disturbed."""
    run()
    seconds: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _clock(seconds: float) -> str:
    """
    Example:
        >>> _clock(75)
        '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
