"""Stable Diffusion 3 and 3.5: a transformer that is told the states of two CLIPs and of T5, and what the CLIPs pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from apl_guard.adapters.inject import run_encoder
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.family import require
from apl_guard.trainer.model.flow import Flow

__all__ = ["StableDiffusion3"]


class StableDiffusion3(Flow):
    """Stable Diffusion 3 and 3.5, with T5 or without.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> StableDiffusion3(tiny_pipe(family="stable_diffusion_3"), TrainConfig()).lengths()
        {'text_encoder': 77, 'text_encoder_2': 77, 'text_encoder_3': 256}
    """

    all_slots = ("text_encoder", "text_encoder_2", "text_encoder_3")
    clip_slots = ("text_encoder", "text_encoder_2")
    t5_slot = "text_encoder_3"

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        self.grain = int(pipe.transformer.config.patch_size)
        super().__init__(pipe, config)
        largest = pipe.transformer.config.pos_embed_max_size * self.grain * pipe.vae_scale_factor
        if self.side > largest:
            raise ConfigInvalid(f"found {self.side}; this model draws at most {largest} pixels", where="picture_size")

    @classmethod
    def check(cls, pipe: Any, where: str, expected: str) -> None:
        parts = ("tokenizer", "tokenizer_2", *cls.clip_slots, "transformer", "vae", "scheduler")
        t5 = getattr(pipe, cls.t5_slot, None) is not None
        require(pipe, (*parts, "tokenizer_3") if t5 else parts, where, expected)
        taken, made = pipe.transformer.config.in_channels, pipe.vae.config.latent_channels
        if taken != made:
            msg = f"this pipeline's transformer takes {taken} channels, its images have {made}; {expected}"
            raise ModelInvalid(msg, where=where)
        cls.check_scheduler(pipe, where)

    def encode(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Condition:
        hidden, pooled = [], []
        for slot in self.clip_slots:
            options = {"output_hidden_states": True}
            output = run_encoder(getattr(self.pipe, slot), rows[slot], vectors.get(slot), **options)
            hidden.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip = torch.cat(hidden, dim=-1)
        if self.t5_slot in self.slots:
            t5 = self.encode_t5(rows, vectors)
        else:  # the pipeline puts zeros in its place; how many, depends on the version of diffusers
            zeros = self.pipe._get_t5_prompt_embeds("", max_sequence_length=self.t5_length)
            t5 = zeros.expand(len(clip), -1, -1)
        clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Condition(torch.cat([clip, t5.to(clip)], dim=1), torch.cat(pooled, dim=-1))

    def ask(self, z_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        output: Tensor = self.pipe.transformer(
            hidden_states=z_t,
            timestep=self.process.times(t),
            encoder_hidden_states=c.hidden,
            pooled_projections=c.pooled,
            return_dict=False,
        )[0]
        return output
