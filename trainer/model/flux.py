"""Flux.1: a transformer that is told the states of T5 and what CLIP pools, and sees latents in squares of 2 × 2.

Letters: B pictures; latents (C, H, W); F = H W / 4 squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apl_guard.adapters.inject import run_encoder
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.family import require
from apl_guard.trainer.model.flow import Flow

__all__ = ["Flux", "pack", "places", "unpack"]


class Flux(Flow):
    """Flux.1 [dev], which has learned to guide itself and is told how strongly, and [schnell], which is not.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> family = Flux(tiny_pipe(family="flux"), TrainConfig())
        >>> family.lengths(), family.passes
        ({'text_encoder': 77, 'text_encoder_2': 512}, 1)
    """

    all_slots = ("text_encoder", "text_encoder_2")
    clip_slots = ("text_encoder",)
    t5_slot = "text_encoder_2"
    grain = 2

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        super().__init__(pipe, config)
        if config.guidance_scale is not None and not self._is_guided:
            raise ConfigInvalid(
                "this model, as Flux.1 [schnell], takes no guidance; leave it empty", where="guidance_scale"
            )

    @classmethod
    def check(cls, pipe: Any, where: str, expected: str) -> None:
        parts = ("tokenizer", "tokenizer_2", *cls.all_slots, "transformer", "vae", "scheduler")
        require(pipe, parts, where, expected)
        taken, made = pipe.transformer.config.in_channels, 4 * pipe.vae.config.latent_channels
        if taken != made:
            msg = f"this pipeline's transformer takes {taken} channels, squares of its images have {made}; {expected}"
            raise ModelInvalid(msg, where=where)
        cls.check_scheduler(pipe, where)

    @property
    def _is_guided(self) -> bool:
        return bool(self.pipe.transformer.config.guidance_embeds)

    @property
    def guidance(self) -> float:
        if not self._is_guided:
            return 0.0
        wish = self.config.guidance_scale
        return float(self.default("guidance_scale") if wish is None else wish)

    @property
    def passes(self) -> int:
        return 1

    def guidance_of_protocol(self, guidance: float) -> float:
        return float(self.default("guidance_scale")) if self._is_guided else 0.0

    def encode(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Condition:
        clip = self.clip_slots[0]
        pooled = run_encoder(getattr(self.pipe, clip), rows[clip], vectors.get(clip)).pooler_output
        return Condition(self.encode_t5(rows, vectors).to(pooled), pooled)

    def ask(self, z_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        told = z_t.new_full((1,), self.guidance).expand(len(z_t)) if self._is_guided else None
        output: Tensor = self.pipe.transformer(
            hidden_states=pack(z_t),
            timestep=self.process.times(t) / 1000,  # which the transformer multiplies by as much
            guidance=told,
            pooled_projections=c.pooled,
            encoder_hidden_states=c.hidden,
            txt_ids=c.hidden.new_zeros(c.hidden.shape[1], 3),
            img_ids=places(z_t),
            return_dict=False,
        )[0]
        return unpack(output, z_t.shape[-2])

    def drawn(self, latents: Tensor) -> Tensor:
        return unpack(latents, self.shape[-2])


def pack(z: Tensor) -> Tensor:
    """Latents (B, C, H, W) as squares, (B, F, 4C).

    Example:
        >>> pack(torch.arange(8.0).view(1, 1, 2, 4)).tolist()
        [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    B, C, H, W = z.shape
    squares = z.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(B, H * W // 4, 4 * C)


def unpack(squares: Tensor, height: int) -> Tensor:
    """The reverse of `pack`, for latents of this H.

    Example:
        >>> z = torch.randn(2, 3, 4, 6)
        >>> torch.equal(unpack(pack(z), 4), z)
        True
    """
    B, F, D = squares.shape
    H, W = height, 4 * F // height
    return squares.view(B, H // 2, W // 2, D // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, D // 4, H, W)


def places(z: Tensor) -> Tensor:
    """Where each square is, (F, 3): nothing, row, column.

    Example:
        >>> places(torch.zeros(1, 1, 2, 4)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    row, column = torch.meshgrid(*(torch.arange(side // 2) for side in z.shape[-2:]), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).to(z)
