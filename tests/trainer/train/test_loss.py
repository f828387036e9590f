"""The loss: the shortcut of two passes against the published form of three."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_model import small_pipe

from apl_guard.adapters.inject import encode_prompts
from apl_guard.trainer.model.diffusion import NoisePrediction, VelocityPrediction
from apl_guard.trainer.model.pipeline import frozen
from apl_guard.trainer.train.loss import apl_loss


def three_passes(pipe: Any, P: torch.Tensor, eta: float, prompts: list[str], neutrals: list[str]) -> torch.Tensor:
    """The published loss, word for word: three passes, a mean over everything."""
    z_t, t = latents_and_levels(len(prompts))
    with torch.no_grad():
        c2 = encode_prompts(pipe.text_encoder, pipe.tokenizer, neutrals)
        neutral = pipe.unet(z_t, t, encoder_hidden_states=c2).sample
        c1 = encode_prompts(pipe.text_encoder, pipe.tokenizer, prompts, P)
        again = pipe.unet(z_t, t, encoder_hidden_states=c1).sample
        target = neutral - eta * (again - neutral)
    c1 = encode_prompts(pipe.text_encoder, pipe.tokenizer, prompts, P)
    eps = pipe.unet(z_t, t, encoder_hidden_states=c1).sample
    return torch.nn.functional.mse_loss(eps, target)


def two_passes(pipe: Any, P: torch.Tensor, eta: float, prompts: list[str], neutrals: list[str]) -> torch.Tensor:
    """Ours."""
    z_t, t = latents_and_levels(len(prompts))
    with torch.no_grad():
        c2 = encode_prompts(pipe.text_encoder, pipe.tokenizer, neutrals)
        neutral = pipe.unet(z_t, t, encoder_hidden_states=c2).sample
    c1 = encode_prompts(pipe.text_encoder, pipe.tokenizer, prompts, P)
    eps = pipe.unet(z_t, t, encoder_hidden_states=c1).sample
    return apl_loss(eps, neutral, eta, torch.full((len(prompts),), 1 / len(prompts)))


def latents_and_levels(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(n, 4, 8, 8, generator=rng), torch.randint(1000, (n,), generator=rng)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_two_passes_give_the_gradient_of_three(eta: float, prediction_type: str) -> None:
    """The gradient of our loss is that of the published one, through the UNet and the text encoder."""
    pipe = small_pipe(prediction_type)
    prompts, neutrals = ["a photo of Ada Lum", "a cat"], ["a photo of a woman", "a cat"]
    start = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))

    gradients = []
    with frozen(pipe):
        for loss in (three_passes, two_passes):
            P = start.clone().requires_grad_(True)
            loss(pipe, P, eta, prompts, neutrals).backward()
            gradients.append(P.grad)

    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-4, atol=1e-6 * gradients[0].abs().max().item())


def test_eta_scales_the_gradient() -> None:
    """η multiplies the gradient by 1 + η."""
    eps, target = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)

    gradients = []
    for eta in (0.0, 3.0):
        x = eps.clone().requires_grad_(True)
        apl_loss(x, target, eta, torch.ones(2)).backward()
        gradients.append(x.grad)

    torch.testing.assert_close(gradients[1], 4 * gradients[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_takes_weight_from_clean_levels(prediction_type: str) -> None:
    """Min-SNR is min(SNR, 5) for errors of the clean picture, as its paper has it for each kind of prediction."""
    alphas = torch.linspace(0.999, 0.01, 100)
    snr = alphas / (1 - alphas)
    t = torch.arange(100)

    process = (NoisePrediction if prediction_type == "epsilon" else VelocityPrediction)(alphas)
    weight = process.weight(t, "min_snr")

    torch.testing.assert_close(weight, snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1))
    assert torch.equal(process.weight(t, "uniform"), torch.ones(100))
