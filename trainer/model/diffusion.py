"""How noise enters latents, and what a model says of it. Three processes; the rest of training knows no difference.

    z_t = a_t z + b_t ε                      noised latents; t counts noise levels, from the cleanest to the noisiest

    ε-prediction     a = √ᾱ, b = √(1 − ᾱ)    the model says ε              Stable Diffusion 1.x, SDXL
    v-prediction     a = √ᾱ, b = √(1 − ᾱ)    it says v = a ε − b z         Stable Diffusion 2.x
    flow matching    a = 1 − σ, b = σ        it says v = ε − z             SD3, Flux

The loss of training compares what a model says with what it says itself, so it is the same for all of them.
What a given difference means is not: at a fixed z_t, pictures that differ by Δz are answers that differ by

    ‖Δε‖² = a²/b² ‖Δz‖²          ‖Δv‖² = 1/b² ‖Δz‖²          (v of either kind)

which `weight` needs: min(SNR, 5) is the weight of ‖Δz‖², where SNR = a²/b².

Letters: B examples; latents (C, H, W); T noise levels.

Source:
    Salimans and Ho, arXiv:2202.00512 (velocity); Lipman et al., arXiv:2210.02747, and Esser et al., arXiv:2403.03206
    (flow matching); Hang et al., arXiv:2303.09556 (min-SNR).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["FlowMatching", "NoisePrediction", "Process", "VelocityPrediction", "process_of"]

MIN_SNR_GAMMA = 5.0


class Process(ABC):
    """How noise enters latents, and what a model says of them."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """T."""

    @abstractmethod
    def shares(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, of the shape of t, in the number format and on the device of `like`."""

    @abstractmethod
    def times(self, t: Tensor) -> Tensor:
        """What a scheduler of diffusers calls these noise levels, shape (B,)."""

    @abstractmethod
    def truth(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What an ideal model says of `noised(z, noise, t)`, shape (B, C, H, W)."""

    @abstractmethod
    def stretch(self, t: Tensor) -> Tensor:
        """‖Δ of what the model says‖² / ‖Δz‖², shape (B,)."""

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t, shape (B, C, H, W).

        Args:
            z: Clean latents, shape (B, C, H, W).
            noise: ε, shape (B, C, H, W).
            t: Noise levels, shape (B,).
        """
        a, b = (share.view(-1, *[1] * (z.ndim - 1)) for share in self.shares(t, z))
        return a * z + b * noise

    def weight(self, t: Tensor, kind: Literal["uniform", "min_snr"]) -> Tensor:
        """How much each drawn noise level counts, shape (B,).

        Args:
            t: Noise levels, shape (B,).
            kind: All alike, or min(SNR, 5), which takes weight from the easy, clean ones.

        Example:
            >>> NoisePrediction(torch.tensor([0.99, 0.5])).weight(torch.tensor([0, 1]), "min_snr")
            tensor([0.0505, 1.0000])
        """
        if kind == "uniform":
            return torch.ones(t.shape, device=t.device)
        return self.snr(t).clamp(max=MIN_SNR_GAMMA) / self.stretch(t)

    def snr(self, t: Tensor) -> Tensor:
        """The signal-to-noise ratio a²/b², shape (B,)."""
        a, b = self.shares(t, torch.empty(0, device=t.device))
        return (a / b) ** 2


class _Variance(Process):
    """A process that keeps the variance: a² + b² = 1.

    Args:
        alphas_cumprod: ᾱ = a², shape (T,).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self._alphas = alphas_cumprod

    @property
    def levels(self) -> int:
        return len(self._alphas)

    def shares(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self._alphas.to(like)[t]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def times(self, t: Tensor) -> Tensor:
        return t

    def snr(self, t: Tensor) -> Tensor:
        alpha = self._alphas.to(t.device)[t].float()
        return alpha / (1 - alpha)

    @abstractmethod
    def as_noise(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """ε of what the model says.

        Args:
            output: What it says, any shape.
            z_t: Noised latents, same shape.
            t: The noise level, a scalar.
        """

    @abstractmethod
    def from_noise(self, eps: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The reverse of `as_noise`."""


class NoisePrediction(_Variance):
    """The model says ε.

    Example:
        >>> z = torch.ones(1, 1, 1, 1)
        >>> NoisePrediction(torch.tensor([0.64])).noised(z, z, torch.tensor([0])).item()
        1.4...
    """

    def truth(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise

    def stretch(self, t: Tensor) -> Tensor:
        return self.snr(t).clamp(min=1e-8)  # where nothing is left of the picture, nothing is to be divided

    def as_noise(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        return output

    def from_noise(self, eps: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        return eps


class VelocityPrediction(_Variance):
    """The model says v = a ε − b z, from which ε = a v + b z_t follows.

    Example:
        >>> process = VelocityPrediction(torch.tensor([0.9, 0.2]))
        >>> eps, z_t, t = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5]), torch.tensor(1)
        >>> process.as_noise(process.from_noise(eps, z_t, t), z_t, t).round(decimals=4).tolist()
        [1.0, -2.0]
    """

    def truth(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, b = (share.view(-1, 1, 1, 1) for share in self.shares(t, z))
        return a * noise - b * z

    def stretch(self, t: Tensor) -> Tensor:
        return self.snr(t) + 1

    def as_noise(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        a, b = self.shares(t, z_t)
        return a * output + b * z_t

    def from_noise(self, eps: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        a, b = self.shares(t, z_t)
        return (eps - b * z_t) / a


class FlowMatching(Process):
    """The model says v = ε − z, the way from the picture to the noise.

    Args:
        sigmas: σ = b, from the cleanest level to the noisiest, shape (T,).
        times: What a scheduler calls them, shape (T,); None: T σ.

    Example:
        >>> process = FlowMatching(torch.tensor([0.25, 1.0]))
        >>> z, noise, t = torch.full((2, 1, 1, 1), 2.0), torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
        >>> process.noised(z, noise, t).flatten().tolist(), process.truth(z, noise, t).flatten().tolist()
        ([1.5, 0.0], [-2.0, -2.0])
    """

    def __init__(self, sigmas: Tensor, times: Tensor | None = None) -> None:
        self._sigmas = sigmas
        self._times = len(sigmas) * sigmas if times is None else times

    @property
    def levels(self) -> int:
        return len(self._sigmas)

    def shares(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self._sigmas.to(like)[t]
        return 1 - sigma, sigma

    def times(self, t: Tensor) -> Tensor:
        return self._times.to(t.device)[t]

    def truth(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - z

    def stretch(self, t: Tensor) -> Tensor:
        return self._sigmas.to(t.device)[t] ** -2


def process_of(scheduler: Any) -> NoisePrediction | VelocityPrediction:
    """The process of a scheduler that knows ᾱ.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> type(process_of(DDIMScheduler(prediction_type="v_prediction"))).__name__
        'VelocityPrediction'
    """
    is_velocity = scheduler.config.get("prediction_type", "epsilon") == "v_prediction"
    return (VelocityPrediction if is_velocity else NoisePrediction)(scheduler.alphas_cumprod)
