"""What diffusers changes in a denoiser while a call draws is of that call alone: caches, attention processors."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import hooks
from embeds import EMBEDS
from guarded import Guarded

from apl_guard import Guard
from apl_guard.testing import FAMILIES, VARIANTS, random_prefix, tiny_pipe, tiny_variant

STEPS = 6
PROMPT = "a photo of Mara Voss"
CACHES = {
    "FirstBlock": lambda: hooks.FirstBlockCacheConfig(threshold=0.5),
    "Mag": lambda: hooks.MagCacheConfig(
        num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS), threshold=0.5, retention_ratio=0.2
    ),
    "TaylorSeer": lambda: hooks.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2),
}


@pytest.fixture(params=[name for name in CACHES if hasattr(hooks, f"{name}CacheConfig")])
def cached(request):
    """A tiny Flux whose denoiser has a cache that matters."""
    m = Guarded("flux")
    m.options |= {"num_inference_steps": STEPS}
    without = m.draw(m.guard, PROMPT)
    m.pipe.transformer.enable_cache(CACHES[request.param]())
    assert not torch.equal(without, m.draw(m.guard, PROMPT))
    return m


class Stopped(BaseException):
    """As a time limit raises it."""


def stopped_after(steps):
    """A callback for the pipe."""
    count = itertools.count(1)

    def call(_pipe, _step, _timestep, tensors):
        if next(count) == steps:
            raise Stopped
        return tensors

    return call


def test_a_call_begins_without_what_one_that_failed_has_left(cached):
    """Its picture is that of the embeds made by hand, and holds nothing of the person whom the bare pipe began."""
    expected = cached.draw(cached.pipe, None, **EMBEDS["flux"](cached, [PROMPT]))

    for steps in range(1, STEPS):
        with pytest.raises(Stopped):
            cached.draw(cached.pipe, "Lena Storm in a boat", seed=7, callback_on_step_end=stopped_after(steps))
        assert torch.equal(expected, cached.draw(cached.guard, PROMPT))


@pytest.mark.parametrize("policy", ["anonymize_faces", "unsafe_allow_all"], ids=["prefix", "bare"])
def test_calls_at_once_draw_what_each_draws_alone(cached, policy):
    """Those of a guard with another policy, too."""
    guards = {PROMPT: cached.guard, "a boat": Guard(cached.pipe, policy, prefix=cached.prefix)}
    alone = {prompt: cached.draw(guard, prompt) for prompt, guard in guards.items()}

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda prompt: (prompt, cached.draw(guards[prompt], prompt)), 4 * list(guards)))

    assert all(torch.equal(alone[prompt], picture) for prompt, picture in drawn)


def test_a_callback_may_draw_with_the_same_denoiser(cached):
    """The call within does not wait for the one around it."""
    guard = Guard(cached.pipe, "unsafe_allow_all")
    drawn = []

    def draw_another(_pipe, _step, _timestep, tensors):
        if not drawn:
            drawn.append(cached.draw(cached.guard, "a boat"))
        return tensors

    cached.draw(guard, PROMPT, callback_on_step_end=draw_another)

    assert torch.equal(drawn[0], cached.draw(cached.guard, "a boat"))


@pytest.fixture(params=["StableDiffusionPAGPipeline", "StableDiffusion3PAGPipeline"])
def perturbed(request):
    """The denoiser of a pipe that guides by perturbed attention, and a function that draws with a scale."""
    family = VARIANTS[request.param].family
    pipe = tiny_variant(tiny_pipe(family=family), request.param)
    guard = Guard(pipe, prefix=random_prefix(pipe, n=4))
    options = FAMILIES[family].options | {"num_inference_steps": 2, "output_type": "latent"}

    def draw(scale):
        return guard(prompt=PROMPT, generator=torch.Generator().manual_seed(0), pag_scale=scale, **options)[0]

    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer, draw


def test_a_call_with_perturbed_attention_that_fails_leaves_none(perturbed):
    """Calls without could not be drawn any more, or were drawn with it."""
    denoiser, draw = perturbed
    expected, steps = draw(0.0), itertools.count(1)

    def stop(*_):
        if next(steps) == 2:
            raise Stopped

    with denoiser.register_forward_pre_hook(stop), pytest.raises(Stopped):
        draw(3.0)

    assert torch.equal(expected, draw(0.0))


def test_calls_at_once_with_perturbed_attention_and_without(perturbed):
    """Each draws what it draws alone."""
    _, draw = perturbed
    alone = {scale: draw(scale) for scale in (0.0, 3.0)}

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda scale: (scale, draw(scale)), 4 * list(alone)))

    assert all(torch.equal(alone[scale], picture) for scale, picture in drawn)
