"""What SD3 and Flux have in common: a transformer that learned a flow, and T5 beside CLIP."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from apl_guard.adapters.inject import run_encoder
from apl_guard.errors import ModelInvalid
from apl_guard.trainer.model.diffusion import FlowMatching
from apl_guard.trainer.model.written_out import WrittenOut

__all__ = ["Flow"]


class Flow(WrittenOut):
    """A family of models that learned a flow."""

    network_name = "transformer"
    clip_slots: ClassVar[tuple[str, ...]]
    """The slots of CLIP."""
    t5_slot: ClassVar[str]
    """The slot of T5, which SD3 may lack."""

    @classmethod
    def check_scheduler(cls, pipe: Any, where: str) -> None:
        """Make sure that the scheduler says where the noise levels of training are.

        Raises:
            ModelInvalid: It does not, or counts them the other way round.
        """
        scheduler = pipe.scheduler
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("invert_sigmas"):
            name = type(scheduler).__name__
            msg = f"{name} with other noise levels than training; expected a FlowMatchEulerDiscreteScheduler as it was"
            raise ModelInvalid(f"{msg} published with the model", where=where)

    @property
    def own_side(self) -> int:
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    @property
    def tokens(self) -> int:
        """How many places a picture has in the transformer."""
        return (self.shape[-1] // self.grain) ** 2

    @cached_property
    def process(self) -> FlowMatching:
        """All noise levels that the pipeline may visit when it draws pictures of this size.

        A scheduler moves levels that lie evenly, u = 1/T … 1, towards the noise, the more the larger the picture is
        (Esser et al., arXiv:2403.03206, eq. 23): σ = s u / (1 + (s − 1) u).
        """
        scheduler = self.pipe.scheduler
        config, T = scheduler.config, scheduler.config.num_train_timesteps
        u = torch.linspace(1, T, T) / T
        if config.use_dynamic_shifting:
            ends = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
            return FlowMatching(scheduler.time_shift(calculate_shift(self.tokens, *ends), 1.0, u))
        return FlowMatching(scheduler.shift * u / (1 + (scheduler.shift - 1) * u))

    @property
    def t5_length(self) -> int:
        taken: int = self.config.max_sequence_length or self.default("max_sequence_length")
        return taken

    def default(self, argument: str) -> Any:
        """What the pipeline takes for an argument that is not given."""
        return inspect.signature(self.pipe.__call__).parameters[argument].default

    def lengths(self) -> dict[str, int]:
        clip = int(self.pipe.tokenizer.model_max_length)  # the pipelines take it for the second CLIP, too
        return {slot: self.t5_length if slot == self.t5_slot else clip for slot in self.slots}

    @property
    def call(self) -> dict[str, Any]:
        return {**super().call, "max_sequence_length": self.t5_length}

    def encode_t5(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Tensor:
        """The last states of T5, shape (B, L, D)."""
        with self.cast():  # it is as large as the transformer
            output = run_encoder(getattr(self.pipe, self.t5_slot), rows[self.t5_slot], vectors.get(self.t5_slot))
        states: Tensor = output[0]
        return states

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Of T5 as well, which transformers computes again only while it is trained."""
        blocks = list(getattr(self.pipe, self.t5_slot).encoder.block) if self.t5_slot in self.slots else []
        own = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        try:
            with super().checkpointing():
                yield
        finally:
            for block, before in zip(blocks, own, strict=True):
                del block.forward
                if before is not None:  # of who offloads it
                    block.forward = before
