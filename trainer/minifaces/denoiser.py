"""The denoiser of the reference world: diffusers' UNet2DConditionModel on 8×8×24 latents, v-prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from apl_guard.trainer.model.pipeline import find_device
from apl_guard.trainer.model.unets import quick_attention

from .autoencoder import LATENT_CHANNELS
from .text_encoder import WIDTH
from .training import autocast, fit

EMPTY_SHARE: Final = 0.1
"""Captions replaced by the empty one, so that the model can be guided away from it (Ho & Salimans 2022)."""


def new_denoiser() -> UNet2DConditionModel:
    """Untrained.  diffusers reads ``attention_head_dim`` as the number of heads here."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=(80, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; DDIM as in the paper's evaluation."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def random_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels, (count,): logit-normal (Esser et al. 2024, §3.1), for most is learned at the middle ones.

    >>> t = random_timesteps(1000, torch.Generator().manual_seed(0))
    >>> bool((t >= 0).all() and (t < 1000).all() and 400 < t.float().mean() < 560)
    True
    """
    return (1000 * torch.sigmoid(1.3 * torch.randn(count, generator=generator) - 0.1)).long()


def train_denoiser(
    latents: Tensor,
    prompt_embeds: Tensor,
    empty_embeds: Tensor,
    steps: int,
    batch: int,
    checkpoint: Path,
    *,
    often: Tensor,
    start_from: UNet2DConditionModel | None = None,
    learning_rate: float = 1.2e-3,
    progress: bool = True,
) -> UNet2DConditionModel:
    """Learn v(z_t, t, c) from scaled ``latents`` (n, 24, 8, 8); ``prompt_embeds`` (n, 77, WIDTH) say what they show.

    Each picture is drawn in proportion to ``often`` (n,).

    v = √ᾱ ε − √(1−ᾱ) z₀ (Salimans & Ho 2022, eq. 11).
    """
    unet = (start_from or new_denoiser().to(find_device())).train().requires_grad_(True)
    where = unet.device
    scheduler = new_scheduler()
    empty = empty_embeds.to(where).float()

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picks = torch.multinomial(often, batch, replacement=True, generator=generator)
        z = latents[picks].to(where)
        c = prompt_embeds[picks].to(where).float()
        dropped = torch.rand(batch, 1, 1, generator=generator).to(where) < EMPTY_SHARE
        c = torch.where(dropped, empty, c)
        noise = torch.randn(z.shape, generator=generator).to(z)
        t = random_timesteps(batch, generator).to(where)
        z_t = scheduler.add_noise(z, noise, t)
        v = scheduler.get_velocity(z, noise, t)
        with autocast(where):
            predicted = unet(z_t, t, encoder_hidden_states=c).sample
        return (predicted.float() - v).square().mean(), {}

    with quick_attention(unet):
        fit(
            "denoiser",
            unet,
            loss,
            steps=steps,
            learning_rate=learning_rate,
            checkpoint=checkpoint,
            average=True,
            progress=progress,
        )
    return unet.eval().requires_grad_(False)
