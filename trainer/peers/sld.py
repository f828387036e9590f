"""Safe Latent Diffusion: the sampling loop steers away from a concept where the prompt steers towards it.

In the letters and equations of the paper, with c_p the prompt, c_S the concept, s_g the guidance scale:

    (3)  ε̄ = ε(z_t) + s_g (ε(z_t, c_p) − ε(z_t) − γ)
    (4)  γ = μ (ε(z_t, c_S) − ε(z_t))
    (5)  μ = min(1, |φ|) where ε(z_t, c_p) − ε(z_t, c_S) < λ, else 0         element by element
    (6)  φ = s_S (ε(z_t, c_p) − ε(z_t, c_S))
    (7)  γ = μ (ε(z_t, c_S) − ε(z_t)) + s_m ν_t                              with momentum
    (8)  ν_{t+1} = β_m ν_t + (1 − β_m) γ                                     ν_0 = 0
    and γ is left out of (3) in the first δ of the steps, while ν gathers.

min(1, ·) as in the authors' code (github.com/ml-research/safe-latent-diffusion), which keeps μ in [0, 1].

Adapted: the model may predict a velocity, which is turned into ε first, for λ and s_S are in units of ε; δ is a share
of the steps, for the paper counts 50 of them; c_S is the list of names, or the listed names in the prompt.

Source:
    Schramowski, Brack, Deiseroth and Kersting, Safe Latent Diffusion, CVPR 2023, arXiv:2211.05105.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from apl_guard.trainer.model.diffusion import process_of
from apl_guard.trainer.peers.concept import Scope, concept_file, concept_of
from apl_guard.trainer.peers.peer import Applied, Files, Task


@dataclass(frozen=True)
class Strength:
    """The hyper-parameters of the paper; these are its "medium"."""

    s_S: float = 1000.0  # noqa: N815 - the paper's letter
    lambda_: float = 0.01
    s_m: float = 0.3
    beta_m: float = 0.4
    delta: float = 0.2
    """Share of the steps: 10 of 50."""


STRENGTHS = {
    "medium": Strength(),
    "strong": Strength(s_S=2000.0, lambda_=0.025, s_m=0.5, beta_m=0.7, delta=0.14),
    "max": Strength(s_S=5000.0, lambda_=1.0, s_m=0.5, beta_m=0.7, delta=0.0),
}


def safety_guidance(eps: Tensor, eps_p: Tensor, eps_S: Tensor, nu: Tensor, how: Strength) -> tuple[Tensor, Tensor]:
    """Equations (5) to (8).

    Args:
        eps: ε(z_t), any shape.
        eps_p: ε(z_t, c_p), same shape.
        eps_S: ε(z_t, c_S), same shape.
        nu: ν_t, same shape.
        how: The hyper-parameters.

    Returns:
        γ and ν_{t+1}.

    Example:
        >>> one = torch.ones(1)
        >>> gamma, nu = safety_guidance(0 * one, 0.5 * one, 2 * one, 0 * one, Strength())
        >>> gamma.item(), round(nu.item(), 3)      # μ = 1, γ = ε(c_S) − ε, ν = 0.6 γ
        (2.0, 1.2)
    """
    phi = how.s_S * (eps_p - eps_S)
    mu = torch.where(eps_p - eps_S < how.lambda_, phi.abs().clamp(max=1), torch.zeros_like(phi))
    gamma = mu * (eps_S - eps) + how.s_m * nu
    return gamma, how.beta_m * nu + (1 - how.beta_m) * gamma


@dataclass(frozen=True)
class SLD:
    """Safe Latent Diffusion with names as the concept."""

    scope: Scope = "named"
    strength: str = "medium"
    source: ClassVar[str] = "Schramowski et al., CVPR 2023, arXiv:2211.05105"

    @property
    def key(self) -> str:
        """Its name."""
        return f"SLD {self.strength}, {self.scope}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The hyper-parameters."""
        return {"scope": self.scope, **asdict(STRENGTHS[self.strength])}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Write the list, or as much of it as a prompt holds."""
        return concept_file(self.scope, pipe.tokenizer, task.names)

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The sampling loop of the pipe, with safety guidance."""
        return Applied(_sampling(pipe, concept_of(files), STRENGTHS[self.strength]))


def _sampling(pipe: Any, concept: Callable[[str], str], how: Strength) -> Callable[..., Any]:
    @torch.no_grad()
    def call(
        prompt: list[str], *, num_inference_steps: int, guidance_scale: float, generator: Any, output_type: str = "np"
    ) -> Any:
        unet, scheduler, device = pipe.unet, pipe.scheduler, pipe.unet.device
        process = process_of(scheduler)
        c_p, c = pipe.encode_prompt(prompt, device, 1, do_classifier_free_guidance=True)  # (B, L, D) twice
        c_S, _ = pipe.encode_prompt([concept(text) for text in prompt], device, 1, do_classifier_free_guidance=False)
        side = unet.config.sample_size * pipe.vae_scale_factor
        scheduler.set_timesteps(num_inference_steps, device=device)
        z_t = pipe.prepare_latents(
            len(prompt), unet.config.in_channels, side, side, c_p.dtype, device, generator, None
        )  # (B, C, H, W)
        nu = torch.zeros_like(z_t)
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler.scale_model_input(z_t, t)
            output = unet(torch.cat([x, x, x]), t, encoder_hidden_states=torch.cat([c, c_p, c_S])).sample
            eps, eps_p, eps_S = (process.as_noise(part, z_t, t) for part in output.chunk(3))
            gamma, nu = safety_guidance(eps, eps_p, eps_S, nu, how)
            if k < how.delta * num_inference_steps:
                gamma = torch.zeros_like(gamma)
            guided = eps + guidance_scale * (eps_p - eps - gamma)
            z_t = scheduler.step(process.from_noise(guided, z_t, t), t, z_t).prev_sample
        image = pipe.vae.decode(z_t / pipe.vae.config.scaling_factor).sample
        return SimpleNamespace(images=pipe.image_processor.postprocess(image, output_type=output_type))

    return call
