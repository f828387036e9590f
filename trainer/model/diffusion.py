"""The arithmetic of diffusion: noise is added, and what the model says of it is read as noise or as velocity.

    z_t = √ᾱ_t z + √(1 − ᾱ_t) ε          noised latents
    v   = √ᾱ_t ε − √(1 − ᾱ_t) z          velocity (Salimans and Ho, arXiv:2202.00512)
    ε   = √ᾱ_t v + √(1 − ᾱ_t) z_t        which follows from both

Letters: B examples; latents (C, H, W); T noise levels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["add_noise", "as_noise", "from_noise", "predicts_velocity", "truth"]


def add_noise(alphas_cumprod: Tensor, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t.

    Args:
        alphas_cumprod: ᾱ, shape (T,).
        z: Clean latents, shape (B, C, H, W).
        noise: ε, shape (B, C, H, W).
        t: Noise levels, shape (B,).

    Example:
        >>> import torch
        >>> z = torch.ones(1, 1, 1, 1)
        >>> add_noise(torch.tensor([0.64]), z, z, torch.tensor([0])).item()
        1.4...
    """
    alpha = alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)
    return alpha.sqrt() * z + (1 - alpha).sqrt() * noise


def predicts_velocity(scheduler: Any) -> bool:
    """Whether the model predicts v; else it predicts ε."""
    return bool(scheduler.config.get("prediction_type", "epsilon") == "v_prediction")


def truth(scheduler: Any, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What an ideal model predicts of `add_noise(…, z, noise, t)`: ε or v, shape (B, C, H, W).

    Args:
        scheduler: Says which of them.
        z: Clean latents, shape (B, C, H, W).
        noise: ε, shape (B, C, H, W).
        t: Noise levels, shape (B,).

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(prediction_type="v_prediction")
        >>> z, noise, t = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([10, 900])
        >>> torch.equal(truth(scheduler, z, noise, t), scheduler.get_velocity(z, noise, t))
        True
    """
    if not predicts_velocity(scheduler):
        return noise
    alpha: Tensor = scheduler.alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)  # not all schedulers have get_velocity
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * z


def as_noise(scheduler: Any, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """ε of what a model predicts.

    Args:
        scheduler: Says what that is.
        output: ε or v, any shape.
        z_t: Noised latents, same shape.
        t: The noise level, a scalar.
    """
    if not predicts_velocity(scheduler):
        return output
    alpha = scheduler.alphas_cumprod.to(z_t)[t]
    eps: Tensor = alpha.sqrt() * output + (1 - alpha).sqrt() * z_t
    return eps


def from_noise(scheduler: Any, eps: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """The reverse of `as_noise`.

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(prediction_type="v_prediction")
        >>> eps, z_t, t = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]), torch.tensor(300)
        >>> as_noise(scheduler, from_noise(scheduler, eps, z_t, t), z_t, t).round(decimals=4).tolist()
        [1.0, -2.0]
    """
    if not predicts_velocity(scheduler):
        return eps
    alpha = scheduler.alphas_cumprod.to(z_t)[t]
    output: Tensor = (eps - (1 - alpha).sqrt() * z_t) / alpha.sqrt()
    return output
