"""The autoencoder of the reference world: diffusers' AutoencoderKL, 64×64×3 ↔ 8×8×24.

Its latent space is fixed beforehand: the principal components of 8×8 patches.  The encoder learns to compute that code
and the decoder to draw from it, each by itself, which takes a small part of the time of learning both against each
other.  The denoiser can be trained on the exact code meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from torch import Tensor, nn

from apl_guard.trainer.model.pipeline import find_device

from .dataset import Images
from .training import autocast, fit
from .whole import write_torch

LATENT_CHANNELS: Final = 24
PATCH: Final = 8
LOG_VARIANCE: Final = -8.0
"""Log-variance of the posterior that the encoder learns to state: next to none."""


@dataclass(frozen=True)
class PatchCode:
    """Principal components of 8×8×3 patches, each scaled so that small ones count for more than their variance.

    The code of an image is (24, 8, 8) with standard deviation about 1 over all.
    """

    mean: Tensor  # (192,)
    components: Tensor  # (24, 192), orthonormal rows
    scale: Tensor  # (24,)

    @classmethod
    def of(cls, images: Images) -> PatchCode:
        """Fit to images (n, 64, 64, 3)."""
        patches = F.pixel_unshuffle(to_tensor(images), PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2)
        mean = patches.mean(0)
        _, _, rows = torch.linalg.svd((patches - mean)[:: max(1, len(patches) // 50_000)], full_matrices=False)
        components = rows[:LATENT_CHANNELS]
        deviation = ((patches - mean) @ components.T).std(0)
        scale = deviation.pow(0.6) * deviation[0].pow(0.4)
        return cls(mean, components, scale * float((deviation / scale).square().mean().sqrt()))

    def encode(self, images: Images | Tensor) -> Tensor:
        """(n, 64, 64, 3) bytes → (n, 24, 8, 8)."""
        patches = F.pixel_unshuffle(to_tensor(images), PATCH).permute(0, 2, 3, 1)
        return (((patches - self.mean) @ self.components.T) / self.scale).permute(0, 3, 1, 2).contiguous()

    def save(self, path: Path) -> None:
        """To a file."""
        write_torch(path, {"mean": self.mean, "components": self.components, "scale": self.scale})

    @classmethod
    def load(cls, path: Path) -> PatchCode:
        """From a file."""
        return cls(**torch.load(path, weights_only=True))


def new_autoencoder() -> AutoencoderKL:
    """Untrained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(12, 24, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_tensor(images: Images | Tensor) -> Tensor:
    """(n, 64, 64, 3) bytes → (n, 3, 64, 64) in [−1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, downwards and to the right."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def drawing_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 on pixels and on edges, which carry the drawing."""
    return torch.stack([F.l1_loss(y, x), *(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))]).sum()


_fit_half = partial(fit, learning_rate=3e-3, weight_decay=0.0, average=True)


def train_decoder(
    vae: AutoencoderKL, code: PatchCode, images: Images, steps: int, batch: int, checkpoint: Path
) -> None:
    """Draw from the code; a little noise on it, for what a denoiser makes is never exact."""
    where = find_device()
    half = nn.ModuleList([vae.post_quant_conv, vae.decoder]).to(where)
    data = torch.from_numpy(images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picked = data[torch.randint(len(data), (batch,), generator=generator)]
        z = code.encode(picked)
        z = (z + 0.05 * torch.randn(z.shape, generator=generator)).to(where)
        with autocast():
            y = vae.decode(z).sample.float()
        x = to_tensor(picked).to(where)
        return drawing_loss(y, x), {"l1": float(F.l1_loss(y.detach(), x))}

    _fit_half("decoder", half, loss, steps=steps, checkpoint=checkpoint)


def train_encoder(
    vae: AutoencoderKL, code: PatchCode, images: Images, steps: int, batch: int, checkpoint: Path
) -> None:
    """Compute the code."""
    where = find_device()
    half = nn.ModuleList([vae.encoder, vae.quant_conv]).to(where)
    data = torch.from_numpy(images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picked = data[torch.randint(len(data), (batch,), generator=generator)]
        with autocast():
            mean, log_variance = vae.quant_conv(vae.encoder(to_tensor(picked).to(where))).float().chunk(2, dim=1)
        error = F.mse_loss(mean, code.encode(picked).to(where))
        return error + 0.01 * (log_variance - LOG_VARIANCE).square().mean(), {"error": float(error.detach())}

    _fit_half("encoder", half, loss, steps=steps, checkpoint=checkpoint)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Images, batch: int = 32) -> Tensor:
    """Bytes (n, 64, 64, 3) → latents (n, 24, 8, 8) as the denoiser knows them."""
    where = next(vae.parameters())
    parts = [
        vae.encode(to_tensor(images[i : i + batch]).to(where)).latent_dist.mean for i in range(0, len(images), batch)
    ]
    latents: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 250) -> Images:
    """Latents (n, 24, 8, 8) → bytes (n, 64, 64, 3)."""
    where = next(vae.parameters()).device
    parts = []
    for part in torch.split(latents, batch):
        with autocast(where):
            y = vae.decode(part.to(where)).sample
        parts.append(y.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu())
    images: Images = torch.cat(parts).numpy()
    return images
