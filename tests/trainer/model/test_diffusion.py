"""The arithmetic of diffusion, against diffusers."""

from __future__ import annotations

from typing import Any

import torch

from apl_guard.trainer.model.diffusion import process_of


def test_noise_and_velocity_are_those_of_diffusers(pipe: Any) -> None:
    """Noised latents and velocities are, bit for bit, what diffusers' own scheduler makes of the same parts."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    rng = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(5, 4, 2, 2, generator=rng) for _ in range(2))
    t = torch.tensor([0, 1, 300, 998, 999])

    process = process_of(scheduler)
    assert torch.equal(process.noised(z, eps, t), scheduler.add_noise(z, eps, t))
    assert torch.equal(process.truth(z, eps, t), scheduler.get_velocity(z, eps, t))
    assert torch.equal(process.times(t), t)
    scheduler.register_to_config(prediction_type="epsilon")
    assert torch.equal(process_of(scheduler).truth(z, eps, t), eps)


def test_noise_and_velocity_are_turned_into_each_other(pipe: Any) -> None:
    """What is made of a velocity is the noise that diffusers made the velocity of, and back."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    z, eps, t = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.tensor(300)
    z_t = scheduler.add_noise(z, eps, t[None])
    velocity = scheduler.get_velocity(z, eps, t[None])

    process = process_of(scheduler)
    torch.testing.assert_close(process.as_noise(velocity, z_t, t), eps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(process.from_noise(eps, z_t, t), velocity, rtol=1e-4, atol=1e-5)
