"""Which models training opens, and what it leaves of them."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

from apl_guard.errors import ModelInvalid
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.model.pipeline import frozen, open_pipe

FAMILIES = ("stable_diffusion", "stable_diffusion_xl")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_model_of_other_noise_is_refused(family: str, scheduler: Any) -> None:
    """Playground 2.5, say, is an SDXL in all but its noise, which is not that of the equations of training."""
    pipe = tiny_pipe(family=family)
    pipe.scheduler = scheduler()

    with pytest.raises(ModelInvalid, match=f"{scheduler.__name__} has no alphas_cumprod"):
        open_pipe(pipe)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, [8, 16]])
def test_a_model_that_does_not_say_how_large_it_draws_is_refused(family: str, size: Any) -> None:
    """Training needs the side of its latents."""
    pipe = tiny_pipe(family=family)
    pipe.unet.register_to_config(sample_size=size)

    with pytest.raises(ModelInvalid, match=r"sample_size is (None|\[8, 16\])"):
        open_pipe(pipe)


def test_a_pipeline_that_draws_from_a_picture_is_refused() -> None:
    """It was handed no picture, which was a traceback of its own."""
    pipe = StableDiffusionXLImg2ImgPipeline(**tiny_pipe(family="stable_diffusion_xl").components)

    with pytest.raises(ModelInvalid, match="draws from an image as well"):
        open_pipe(pipe)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_afterwards_as_it_was(family: str) -> None:
    """Modes of parts within parts, what learns, and the user's own gradient checkpointing."""
    pipe = tiny_pipe(family=family)
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    pipe.unet.enable_gradient_checkpointing()
    networks = (pipe.text_encoder, getattr(pipe, "text_encoder_2", pipe.text_encoder), pipe.unet, pipe.vae)
    next(networks[1].parameters()).requires_grad_(False)

    def state() -> list[Any]:
        learns = [p.requires_grad for network in networks for p in network.parameters()]
        return [pipe.unet.is_gradient_checkpointing, learns, [m.training for n in networks for m in n.modules()]]

    before = state()

    with frozen(pipe, gradient_checkpointing=True):
        assert not any(m.training for network in networks for m in network.modules())
        assert not any(p.requires_grad for network in networks for p in network.parameters())

    assert state() == before
    assert len(set(before[1])) == len(set(before[2])) == 2
