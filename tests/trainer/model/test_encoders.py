"""What training tells the UNet is what the guarded pipeline tells it, with one text encoder and with two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apl_guard import Guard
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.model.unets import predict

N = 4
FAMILIES = ("stable_diffusion", "stable_diffusion_xl")
PROMPTS = ["a photo of a man", "two dogs in the rain, and a lamp"]


def told(pipe: Any, draw: Any, **arguments: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """The latents and conditions that the UNet of a pipe receives in one step."""
    seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def look(_: Any, positional: Any, keywords: dict[str, Any]) -> None:
        seen.append((positional[0], keywords))

    hook = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        draw(PROMPTS, num_inference_steps=1, guidance_scale=1.0, **arguments)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_guarded", [False, True])
def test_the_unet_is_told_in_training_what_the_pipeline_tells_it(family: str, is_guarded: bool) -> None:
    """The same bits: states of all text encoders, the pooled vector, the sizes, with the prefix and without."""
    pipe = tiny_pipe(family=family)
    prefix = random_prefix(pipe, n=N)
    model = family_of(pipe)
    P = torch.cat([prefix.vectors[slot] for slot in model.slots], dim=1) if is_guarded else None
    ((_, keywords),) = told(pipe, Guard(pipe, prefix=prefix) if is_guarded else pipe)

    with torch.no_grad():
        c = model.embed(model.tokenize(PROMPTS, N if is_guarded else 0), P)

    assert torch.equal(c.hidden, keywords["encoder_hidden_states"])
    added = keywords.get("added_cond_kwargs")
    assert (added is None) == (c.pooled is None)
    if added is not None:
        assert torch.equal(c.pooled, added["text_embeds"])
        assert torch.equal(c.sizes, added["time_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_vectors_of_every_text_encoder(family: str) -> None:
    """Each column of the prefix changes what the UNet answers."""
    pipe = tiny_pipe(family=family)
    model = family_of(pipe)
    P = torch.randn(N, sum(model.widths.values()), requires_grad=True)
    side = pipe.unet.config.sample_size
    z_t, t = torch.randn(2, pipe.unet.config.in_channels, side, side), torch.tensor([500, 500])

    eps = predict(pipe.unet, z_t, t, model.embed(model.tokenize(PROMPTS, N), P))
    torch.autograd.backward(eps.pow(2).sum())

    assert P.grad is not None
    assert {slot: bool(part.abs().sum() > 0) for slot, part in model.split(P.grad).items()} == dict.fromkeys(
        model.slots, True
    )


def test_a_part_of_some_prompts_is_what_those_prompts_are_alone() -> None:
    """Rows can be taken and put together again, of every part."""
    model = family_of(tiny_pipe(family="stable_diffusion_xl"))
    with torch.no_grad():
        both, (first, second) = (
            model.embed(model.tokenize(PROMPTS, 0)),
            [model.embed(model.tokenize([text], 0)) for text in PROMPTS],
        )

    again = Condition.cat([first, second])

    assert len(both) == len(again) == 2
    assert both.pooled is not None
    assert again.pooled is not None
    assert torch.allclose(both[1:].hidden, second.hidden, atol=1e-5)
    assert torch.allclose(both.pooled, again.pooled, atol=1e-5)


def test_every_text_encoder_is_part_of_what_a_model_is() -> None:
    """A change of the second one alone gives another digest, so latents of the former are not taken."""
    pipe = tiny_pipe(family="stable_diffusion_xl")
    before = model_digest(pipe)

    with torch.no_grad():
        next(pipe.text_encoder_2.parameters()).add_(1e-3)

    assert model_digest(pipe) != before
