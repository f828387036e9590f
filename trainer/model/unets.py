"""Stable Diffusion 1.x and 2.x, and SDXL: a UNet that is told the states of one or two CLIP text encoders."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from apl_guard.adapters.inject import embed, run_encoder
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.diffusion import Process, process_of
from apl_guard.trainer.model.family import require
from apl_guard.trainer.model.number_format import computing_in
from apl_guard.trainer.model.written_out import WrittenOut

__all__ = ["StableDiffusion", "StableDiffusionXL", "predict", "quick_attention"]


def predict(unet: Any, z_t: Tensor, t: Tensor, c: Tensor | Condition, dtype: torch.dtype = torch.float32) -> Tensor:
    """ε(z_t, t, c): one pass of a UNet.

    Args:
        unet: The UNet.
        z_t: Noised latents, shape (B, C, H, W).
        t: Noise levels, shape (B,).
        c: What the UNet is told of the prompts, or their embeds alone, shape (B, L, D).
        dtype: What the pass computes in.

    Returns:
        Shape (B, C, H, W), float32.
    """
    with computing_in(dtype, z_t.device):
        return _ask(unet, z_t, t, c if isinstance(c, Condition) else Condition(c)).float()


def _ask(unet: Any, z_t: Tensor, t: Tensor, c: Condition) -> Tensor:
    added = None if c.pooled is None else {"text_embeds": c.pooled, "time_ids": c.sizes}
    output: Tensor = unet(z_t, t, encoder_hidden_states=c.hidden, added_cond_kwargs=added).sample
    return output


@contextmanager
def quick_attention(unet: Any) -> Iterator[None]:
    """The attention whose backward pass is quick on a CPU, where torch's fused one takes two thirds of a step.

    The UNet has its own again at the end.
    """
    from diffusers.models.attention_processor import AttnProcessor

    processors = dict(unet.attn_processors)
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(processors)


class StableDiffusion(WrittenOut):
    """Stable Diffusion 1.x and 2.x: one text encoder, whose last states the UNet is told."""

    network_name = "unet"
    all_slots: ClassVar[tuple[str, ...]] = ("text_encoder",)
    protocol_sampler = DDIMScheduler

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        super().__init__(pipe, config)
        if config.max_sequence_length is not None:
            msg = f"this is for T5, and {type(pipe).__name__} has none; leave it empty"
            raise ConfigInvalid(msg, where="max_sequence_length")

    @classmethod
    def check(cls, pipe: Any, where: str, expected: str) -> None:
        require(pipe, ("tokenizer", "text_encoder", "unet", "vae", "scheduler"), where, expected)
        additions = getattr(pipe.unet.config, "addition_embed_type", None)
        found = [slot for slot in StableDiffusionXL.all_slots if getattr(pipe, slot, None) is not None]
        if {None: 1, "text_time": 2}.get(additions) != len(found):
            msg = f"this pipeline has {len(found)} text encoder(s) for a UNet that takes {additions or 'no'} additions"
            raise ModelInvalid(f"{msg}; {expected}", where=where)
        taken, made = getattr(pipe.unet.config, "in_channels", None), getattr(pipe.vae.config, "latent_channels", None)
        if taken != made:
            # Of inpainting, depth, upscaling: it draws from a picture as well.
            msg = f"this pipeline's UNet takes {taken} channels, its images have {made}; {expected}"
            raise ModelInvalid(msg, where=where)
        if "image" in inspect.signature(pipe.__call__).parameters:
            raise ModelInvalid(f"{type(pipe).__name__} draws from an image as well; {expected}", where=where)
        side = getattr(pipe.unet.config, "sample_size", None)
        if not isinstance(side, int):
            msg = f"the UNet's sample_size is {side}; expected the side of its square latents, as a whole number"
            raise ModelInvalid(msg, where=where)
        kind = pipe.scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ModelInvalid(f"prediction type '{kind}'; expected epsilon or v_prediction", where=where)
        if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
            # Of EDM and flow matching, whose noise is added by other equations than those of these models.
            name = type(pipe.scheduler).__name__
            msg = f"{name} has no alphas_cumprod; expected a scheduler of Stable Diffusion or SDXL"
            raise ModelInvalid(msg, where=where)

    @cached_property
    def process(self) -> Process:
        return process_of(self.pipe.scheduler)

    @property
    def own_side(self) -> int:
        return int(self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor)

    def lengths(self) -> dict[str, int]:
        names = {slot: slot.replace("text_encoder", "tokenizer") for slot in self.slots}
        return {slot: int(getattr(self.pipe, name).model_max_length) for slot, name in names.items()}

    def encode(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Condition:
        return Condition(embed(self.pipe.text_encoder, rows["text_encoder"], vectors.get("text_encoder")))

    def ask(self, z_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        return _ask(self.pipe.unet, z_t, t, c)

    @contextmanager
    def quick(self) -> Iterator[None]:
        with quick_attention(self.pipe.unet):
            yield


class StableDiffusionXL(StableDiffusion):
    """SDXL: the states of two text encoders side by side, a pooled vector of the second, and sizes of the picture."""

    all_slots = ("text_encoder", "text_encoder_2")

    def encode(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Condition:
        hidden, pooled = [], None
        for slot, row in rows.items():
            text_encoder = getattr(self.pipe, slot)
            output = run_encoder(text_encoder, row, vectors.get(slot), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            if output[0].ndim == 2:  # with a projection: the pooled vector comes first
                pooled = output[0]
        size = [self.side, self.side]
        sizes = hidden[0].new_tensor([*size, 0, 0, *size]).repeat(len(hidden[0]), 1)
        return Condition(torch.cat(hidden, dim=-1), pooled, sizes)

    @property
    def beside_weights(self) -> list[Any]:
        # Zeros or the empty prompt where no negative prompt is given: the same weights draw other pictures.
        return [bool(self.pipe.config.get("force_zeros_for_empty_prompt"))]
