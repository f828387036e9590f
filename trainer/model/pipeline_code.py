"""Any other pipeline that the guard covers, asked through its own code: see `one_answer`.

Letters: B prompts; T noise levels. Latents are of any shape: many pipelines cut them into squares, in a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from apl_guard.adapters.diffusers.adapter import DiffusersAdapter
from apl_guard.adapters.diffusers.arguments import REWRITES
from apl_guard.adapters.diffusers.calling import run, signature_of
from apl_guard.adapters.diffusers.modular import is_modular
from apl_guard.adapters.diffusers.shared_models import with_models_alone
from apl_guard.adapters.diffusers.view import encoders_of
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import AplGuardError, ConfigInvalid, InvalidInput, ModelInvalid, PrefixNotApplied
from apl_guard.request import GenerationRequest
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import Prompts
from apl_guard.trainer.model.diffusion import FlowMatching, Process, process_of
from apl_guard.trainer.model.family import Family
from apl_guard.trainer.model.one_answer import AnsweredError, called, clean_latents, first_answer

__all__ = ["PipelineCode"]

_PROBE = "a photo of a man"
_OF_STEPS = "guidance_schedule"
_ONCE = {"num_inference_steps": 1, "output_type": "latent"}


class PipelineCode(Family):
    """A pipeline whose own code is run for each answer.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> family = PipelineCode(tiny_pipe(family="qwen_image"), TrainConfig(picture_size=32))
        >>> family.slots, family.shape, family.process.levels
        (('text_encoder',), (16, 16), 1000)
    """

    draws_singly = True  # some take one prompt alone

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        self.network_name = _network_of(pipe) or ""  # type: ignore[misc]
        super().__init__(pipe, config)
        self._texts: list[str] = []
        self._adapter = DiffusersAdapter(pipe)
        self._parameters = signature_of(pipe).parameters
        name = type(pipe).__name__
        if config.adversarial:
            raise ConfigInvalid(f"there are no attacks in the loop for {name}; expected 0", where="adversarial")
        for option in ("guidance_scale", "max_sequence_length"):
            if getattr(config, option) is not None and option not in self._parameters:
                raise ConfigInvalid(f"{name} takes none; leave it out", where=option)

    @classmethod
    def check(cls, pipe: Any, where: str, expected: str) -> None:
        name = type(pipe).__name__
        try:
            DiffusersAdapter(pipe)
        except InvalidInput as error:
            raise ModelInvalid(f"{error}; {expected}", where=where) from error
        if not encoders_of(pipe):
            raise ModelInvalid(f"this {name} has no text encoder with a tokenizer; {expected}", where=where)
        is_of_blocks = is_modular(type(pipe))
        if _network_of(pipe) is None or not (is_of_blocks or hasattr(pipe, "prepare_latents")):
            raise ModelInvalid(f"{name} draws in another way than by one denoiser; {expected}", where=where)
        if not is_of_blocks and "image" in inspect.signature(pipe.prepare_latents).parameters:
            raise ModelInvalid(f"{name} draws from an image; {expected}", where=where)
        scheduler = getattr(pipe, "scheduler", None)
        if not _learned_flow(scheduler) and not _says_noise(scheduler):
            raise ModelInvalid(
                f"{type(scheduler).__name__} does not say where the noise levels of training are; expected a "
                "scheduler as it was published with the model",
                where=where,
            )

    @property
    def slots(self) -> tuple[str, ...]:
        return self._probe.slots

    @property
    def shape(self) -> tuple[int, ...]:
        return self._probe.shape

    @property
    def process(self) -> Process:
        return self._probe.process

    @property
    def part_names(self) -> tuple[str, ...]:
        return tuple(name for name, part in sorted(self.pipe.components.items()) if isinstance(part, nn.Module))

    @property
    def unit(self) -> int:
        factors = ("vae_scale_factor", "vae_scale_factor_spatial")
        return next((int(getattr(self.pipe, name)) for name in factors if hasattr(self.pipe, name)), 8)

    @property
    def own_side(self) -> int:
        pixels = self.pipe.config.get("default_sample_size")  # what is in the configuration of PRX counts pixels
        return int(pixels or getattr(self.pipe, "default_sample_size", 128) * self.unit)

    @property
    def t5_length(self) -> int | None:
        return self.config.max_sequence_length

    @property
    def guidance(self) -> float:
        guider = getattr(self.pipe, "guider", None)  # of pipelines that take no scale
        own = getattr(guider, "guidance_scale", None)
        own = self._parameters["guidance_scale"].default if "guidance_scale" in self._parameters else own
        if own is None and (of_steps := self._guidance_of_steps):
            own = of_steps[0]
        wish = self.config.guidance_scale
        return float((own or 0.0) if wish is None else wish)

    @property
    def _guidance_of_steps(self) -> tuple[float, ...]:
        """A strength for each of as many steps as the pipeline takes by default. Ideogram 4 has them."""
        schedule = self._parameters.get(_OF_STEPS)
        return () if schedule is None else tuple(schedule.default or ())

    def guidance_of_protocol(self, guidance: float) -> float:
        return self.guidance  # what another model's was is none for this one

    def guided(self, guidance: float) -> dict[str, Any]:
        own = self._parameters.get("guidance_scale")
        is_taken = own is not None and (own.default is not None or self._guidance_of_steps)
        return {**self.call, **({"guidance_scale": guidance} if is_taken else {})}

    @property
    def passes(self) -> int:
        return 1  # the pipeline's own guidance is in each answer

    @property
    def call(self) -> dict[str, Any]:
        """What the options of the run say; all else is as the pipeline has it."""
        side = self.config.picture_size
        given = {"guidance_scale": self.config.guidance_scale, "max_sequence_length": self.t5_length}
        given |= {name: off for name, off in REWRITES.items() if name in self._parameters}
        if "true_cfg_scale" in self._parameters:  # it acts on calls with a negative prompt alone, and warns of others
            given["true_cfg_scale"] = 1.0
        of_steps: dict[str, Any] = {}
        if self._guidance_of_steps:  # runs have other numbers of steps, so one strength is for all
            of_steps, given["guidance_scale"] = {_OF_STEPS: None}, self.guidance
        given |= {"height": side, "width": side}
        return {name: value for name, value in given.items() if value is not None} | of_steps

    def lengths(self) -> dict[str, int]:
        """The pipeline makes its rows as long as it likes."""
        return {}

    def tokenize(self, prompts: Sequence[str], n: int) -> Tensor:
        """Numbers of texts, shape (B, 1, 1): the pipeline makes its tokens itself."""
        first = len(self._texts)
        self._texts += prompts
        return torch.arange(first, len(self._texts)).view(-1, 1, 1)

    def told(self, ids: Tensor, vectors: Mapping[str, Tensor]) -> Prompts:
        return Prompts(tuple(self._texts[k] for k in ids.flatten().tolist()), vectors)

    def ask(self, z_t: Tensor, t: Tensor, c: Any) -> Tensor:
        process, answers = self.process, []
        for text, z, time, sigma in zip(c.texts, z_t, process.times(t), process.shares(t, z_t)[1], strict=True):
            seen = first_answer(self.pipe, self._request([text], **_ONCE), c.vectors, (time, sigma), z[None])
            if not torch.equal(seen.sample, z[None].to(seen.sample)):
                name = type(self.pipe).__name__
                raise ModelInvalid("its pipeline does not start from the latents that it is given", where=name)
            for slot, vectors in c.vectors.items():
                if set(seen.rows[slot]) != {len(vectors)}:
                    raise PrefixNotApplied(f"{slot} received {seen.rows[slot]} vectors; expected {len(vectors)}")
            answers.append(seen.answer)
        return torch.cat(answers)

    def draw_latents(self, texts: Sequence[str], steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        options = {"num_inference_steps": steps, "generator": list(generators), "output_type": "latent"}
        return clean_latents(self.pipe, self._request(texts, **options))

    def draw(self, c: Any, steps: int, generators: Sequence[torch.Generator]) -> list[Any]:
        request = self._request(c.texts, num_inference_steps=steps, generator=list(generators))
        with self.mixed(), called(self.pipe, request, c.vectors) as (view, arguments, _), with_models_alone(view):
            return list(run(view, arguments)[1])

    def latents_of(self, pixels: Tensor) -> Tensor:
        name = type(self.pipe).__name__
        raise ConfigInvalid(f"own images cannot be learned from with {name}; let it generate them", where="images")

    @cached_property
    def _probe(self) -> _Probe:
        """What is found out by running the pipeline once, kept for as long as the pipe lives."""
        of_pipe = _probes.setdefault(self.pipe, {})
        scheduler = self.pipe.scheduler
        key = str((self.call, type(scheduler), sorted(scheduler.config.items())))
        if key not in of_pipe:
            of_pipe[key] = self._run_probe()
        return of_pipe[key]

    @torch.no_grad()
    def _run_probe(self) -> _Probe:
        scheduler, name = self.pipe.scheduler, type(self.pipe).__name__
        vectors = {e.slot: token_embedding(e.text_encoder).weight[:1].detach() for e in encoders_of(self.pipe)}
        if not self._lets_gradients_through(vectors):
            raise ModelInvalid("its pipeline lets no gradient through from its text encoder", where=name)
        T = int(scheduler.config.num_train_timesteps)
        with self.cast(), _named(name):
            seen = first_answer(self.pipe, self._request([_PROBE], **_ONCE | {"num_inference_steps": T}), vectors)
        slots = tuple(slot for slot, rows in seen.rows.items() if rows)
        if not slots or not hasattr(seen, "sample"):
            raise ModelInvalid("its text encoders do not read the prompt, or its scheduler is told nothing", where=name)
        shape = tuple(seen.sample.shape[1:])
        if _says_noise(scheduler):
            return _Probe(slots, shape, process_of(scheduler))
        sigmas, times = (part.flip(0).float().cpu() for part in (seen.sigmas, seen.times))
        if sigmas.max() > 1.001:
            msg = f"σ of its noise levels goes up to {sigmas.max():g}, and that of a flow to 1"
            raise ModelInvalid(f"{msg}; it cannot be trained on", where=name)
        return _Probe(slots, shape, FlowMatching(sigmas, times))

    @torch.enable_grad()
    def _lets_gradients_through(self, vectors: Mapping[str, Tensor]) -> bool:
        """Whether what the denoiser is told depends on the prefix for torch, too. The denoiser is not run."""
        learning = {slot: part.clone().requires_grad_() for slot, part in vectors.items()}
        found: list[bool] = []

        def look(_: Any, *given: Any) -> None:
            found.append(any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(given)))
            raise AnsweredError

        hook = self.network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with self.cast(), _named(type(self.pipe).__name__):
                first_answer(self.pipe, self._request([_PROBE], **_ONCE), learning)
        finally:
            hook.remove()
        return found == [True]

    def _request(self, texts: Sequence[str], **options: Any) -> GenerationRequest:
        # Some pipelines take one prompt alone, as a text.
        prompt = texts[0] if len(texts) == 1 else list(texts)
        if "generator" in options and len(texts) == 1:
            options["generator"] = options["generator"][0]
        request: GenerationRequest = self._adapter.read((), {"prompt": prompt, **self.call, **options})
        return request


@dataclass(frozen=True)
class _Probe:
    slots: tuple[str, ...]
    """Of the text encoders that read the prompt."""
    shape: tuple[int, ...]
    """Of the latents of one picture, as the scheduler sees them."""
    process: Process


_probes: WeakKeyDictionary[Any, dict[str, _Probe]] = WeakKeyDictionary()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What a pipeline raises that is called for the first time, as an error that names it."""
    try:
        yield
    except (AplGuardError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"its pipeline draws nothing from a prompt alone ({type(error).__name__}: {error})"
        raise ModelInvalid(f"{what:.500}; expected one that does", where=name) from error


def _learned_flow(scheduler: Any) -> bool:
    """Whether its σ are those of a flow."""
    config = getattr(scheduler, "config", {})
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return not config.get("invert_sigmas")
    return bool(config.get("use_flow_sigmas")) and config.get("prediction_type") == "flow_prediction"


def _says_noise(scheduler: Any) -> bool:
    """Whether its model says noise or velocity, and it knows ᾱ."""
    is_known = getattr(scheduler, "config", {}).get("prediction_type", "epsilon") in ("epsilon", "v_prediction")
    return is_known and hasattr(scheduler, "alphas_cumprod")


def _network_of(pipe: Any) -> str | None:
    return next((name for name in ("transformer", "unet") if getattr(pipe, name, None) is not None), None)
