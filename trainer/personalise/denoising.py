"""The loss by which a denoiser, or what enters it, learns pictures; with DreamBooth's prior preservation.

z_t      the latents of a picture, noised to level t
ε(…)     the output of the UNet: noise or velocity, whichever the model predicts
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from apl_guard.trainer.minifaces.autoencoder import encode
from apl_guard.trainer.minifaces.denoiser import random_timesteps
from apl_guard.trainer.minifaces.training import fit
from apl_guard.trainer.model.diffusion import process_of
from apl_guard.trainer.model.prompt_embeds import embeds_of
from apl_guard.trainer.model.unets import quick_attention
from apl_guard.trainer.personalise.drawings import BATCH, Drawings, Prior, draw_prior
from apl_guard.trainer.personalise.recipe import Recipe


def denoising_loss(pipe: Any, unet: Any, z: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
    """‖ ε(z_t, t, c) − target ‖² for each picture, at a random noise level.

    Args:
        pipe: The model; its scheduler says how noise is added and what is predicted.
        unet: Who predicts.
        z: Scaled latents, shape (B, C, H, W).
        c: Prompt embeds, shape (B, L, D).
        generator: Draws noise and levels; on the CPU.

    Returns:
        Shape (B,).
    """
    scheduler = pipe.scheduler
    noise = torch.randn(z.shape, generator=generator).to(z)
    t = random_timesteps(len(z), generator).to(z.device)
    z_t = scheduler.add_noise(z, noise, t)
    predicted = unet(z_t, t, encoder_hidden_states=c).sample
    return F.mse_loss(predicted, process_of(scheduler).truth(z, noise, t), reduction="none").mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Lessons:
    """Batches of drawings and of the prior, for what learns in the denoiser."""

    pipe: Any
    """The model before anybody was added."""
    latents: Tensor
    """Of the drawings, shape (n, C, H, W)."""
    embeds: Tensor
    """Of their captions, shape (m, L, D); caption i says drawing i % n."""
    prior: Prior
    recipe: Recipe

    @classmethod
    def of(cls, pipe: Any, drawings: Drawings, recipe: Recipe, *, progress: bool) -> Lessons:
        """Encode everything once."""
        prior = draw_prior(pipe, recipe.prior, progress=progress)
        embeds = embeds_of(pipe, drawings.captions, BATCH)
        return cls(pipe, encode(pipe.vae, drawings.images), embeds, prior, recipe)

    def loss(self, unet: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """L = loss of the drawings + loss of the prior, each a mean over its part of one batch (DreamBooth, eq. 2)."""
        batch = self.recipe.batch
        shown = torch.randint(len(self.embeds), (batch,), generator=generator)
        own = torch.randint(len(self.prior.embeds), (self.recipe.prior_batch,), generator=generator)
        z = torch.cat([self.latents[shown % len(self.latents)], self.prior.latents[own]])
        c = torch.cat([self.embeds[shown], self.prior.embeds[own]])
        each = denoising_loss(self.pipe, unet, z, c, generator)
        drawings, prior = each[:batch].mean(), each[batch:].mean()
        return drawings + prior, {"drawings": float(drawings.detach()), "prior": float(prior.detach())}

    def teach(self, unet: Any, label: str, steps: int, rate: float, checkpoint: Path, *, progress: bool) -> None:
        """Let what learns in a denoiser learn; of a killed run, what is left.

        Raises:
            InvalidInput: The state of the run that was killed is damaged.
            StorageFailed: The state cannot be written.
        """
        loss = partial(self.loss, unet)
        with quick_attention(unet):
            fit(
                label, unet, loss, steps=steps, learning_rate=rate, warmup=steps // 8, checkpoint=checkpoint,
                progress=progress,
            )  # fmt: skip
