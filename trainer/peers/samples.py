"""Pictures that a model draws for a peer to learn from, as latents.

Letters: M pictures, S stages of each; latents (C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from apl_guard.trainer.data.seeds import PEERS, seed_of
from apl_guard.trainer.model.pipeline import frozen

_BATCH = 32


@torch.no_grad()
def draw_stages(
    pipe: Any, prompts: Sequence[str], steps: int, guidance: float, seed: int, progress: bool
) -> tuple[Tensor, Tensor]:
    """Draw M pictures and keep x_t before each step.

    Returns:
        Latents, shape (M, S, C, H, W), and noise levels, shape (S,); on the CPU.
    """
    parts: list[Tensor] = []
    for texts, first in _batches(pipe, prompts, seed, progress):
        seen: list[Tensor] = [first]

        def keep(_: Any, step: int, t: Any, tensors: dict[str, Tensor], seen: list[Tensor] = seen) -> dict[str, Tensor]:
            seen.append(tensors["latents"])
            return {}

        pipe(
            texts, latents=first, num_inference_steps=steps, guidance_scale=guidance, output_type="latent",
            callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents"],
        )  # fmt: skip
        parts.append(torch.stack(seen[:-1], dim=1).float().cpu())
    return torch.cat(parts), pipe.scheduler.timesteps.cpu()


@torch.no_grad()
def draw_latents(pipe: Any, prompts: Sequence[str], steps: int, guidance: float, seed: int, progress: bool) -> Tensor:
    """Draw M pictures.

    Returns:
        Latents, shape (M, C, H, W), on the CPU.
    """
    parts: list[Tensor] = []
    for texts, first in _batches(pipe, prompts, seed, progress):
        output = pipe(texts, latents=first, num_inference_steps=steps, guidance_scale=guidance, output_type="latent")
        parts.append(output.images.float().cpu())
    return torch.cat(parts)


def _batches(pipe: Any, prompts: Sequence[str], seed: int, progress: bool) -> Iterator[tuple[list[str], Tensor]]:
    """Prompts in batches, each with its noise, (B, C, H, W)."""
    unet = pipe.unet
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with frozen(pipe), tqdm(total=len(prompts), desc="images to learn from", unit="img", disable=not progress) as bar:
        for start in range(0, len(prompts), _BATCH):
            texts = list(prompts[start : start + _BATCH])
            generators = [torch.Generator().manual_seed(seed_of(seed, PEERS, start + k)) for k in range(len(texts))]
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            yield texts, noise.to(unet.device, unet.dtype) * pipe.scheduler.init_noise_sigma
            bar.update(len(texts))
