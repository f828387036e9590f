"""Pipelines that are put together from blocks: which are covered, and what a guarded call gives back."""

import copy
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from guarded import Guarded

from apl_guard import Guard, InvalidInput, PolicyBlocked
from apl_guard.testing import random_prefix, tiny_pipe

pytestmark = pytest.mark.skipif(not hasattr(diffusers, "Flux3AutoBlocks"), reason="this diffusers has no Flux.3")


@pytest.fixture(scope="module")
def m():
    return Guarded("flux_3")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made_of(blocks):
    return diffusers.Flux3ModularPipeline(blocks)


def blocks_without(*names):
    blocks = copy.deepcopy(diffusers.Flux3AutoBlocks())  # those inside are the same for all
    for name in names:
        blocks.sub_blocks.pop(name)
    return blocks


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"'prompt_upsampler' writes the prompt anew, .*; make .*: blocks\.sub_blocks\.pop\('prompt_upsampler'\)$"),
        (("prompt_upsampler", "text_encoder"), "it takes no prompt$"),
        (("prompt_upsampler", "decode"), "its blocks end before there are images$"),
    ],
)
def test_blocks_that_a_prefix_cannot_serve_are_refused(names, message):
    """Before anything is loaded, with what to do."""
    with pytest.raises(InvalidInput, match=rf"^pipe: Flux3ModularPipeline is not covered: .*{message}"):
        Guard(made_of(blocks_without(*names)))


def test_blocks_of_somebody_else_are_refused_by_name():
    """However deep they are, and if they are made of one that diffusers brings: they may read another text."""

    class Translating(type(diffusers.Flux3AutoBlocks().sub_blocks["text_encoder"])):
        pass

    blocks = blocks_without("prompt_upsampler")
    blocks.sub_blocks["denoise"].sub_blocks["text2image"].sub_blocks["input"] = Translating()

    with pytest.raises(InvalidInput, match="does not bring Translating for this model"):
        Guard(made_of(blocks))


def test_what_holds_the_blocks_is_looked_at_like_them():
    """It runs them, in whatever order and with whatever text it likes."""

    class Mine(diffusers.Flux3AutoBlocks):
        def __call__(self, pipeline, state):
            raise NotImplementedError

    blocks = copy.deepcopy(Mine())
    blocks.sub_blocks.pop("prompt_upsampler")

    with pytest.raises(InvalidInput, match="does not bring Mine for this model"):
        Guard(made_of(blocks))


def test_blocks_of_another_model_are_refused_by_name():
    """They belong to diffusers and were not looked at together with these."""
    blocks = blocks_without("prompt_upsampler")
    blocks.sub_blocks["decode"] = diffusers.Flux2AutoBlocks().sub_blocks["decode"]

    with pytest.raises(InvalidInput, match="does not bring Flux2DecodeStep for this model"):
        Guard(made_of(blocks))


@pytest.mark.parametrize("argument", ["state", "denoiser_input_fields", "prompt_embeds", "image", "latents", "boxes"])
def test_what_could_bring_somebody_past_the_prefix_is_blocked(argument):
    """A state of an earlier call, fields for the denoiser, embeds, images: by the default policy."""
    pipe = tiny_pipe(family="flux_3")
    guard = Guard(pipe, prefix=random_prefix(pipe))

    with pytest.raises(PolicyBlocked):
        guard(prompt="a red car", height=16, width=16, num_inference_steps=1, **{argument: object()})


def test_the_state_that_comes_back_says_what_was_asked(m):
    """The type is that of the pipe, and the prompt is without the mark under which it travelled."""
    asked = {name: value for name, value in m.options.items() if name != "output"}

    made = m.guard.generate(
        prompt="a photo of Mara Voss", negative_prompt="fog", num_images_per_prompt=2, generator=seeded(), **asked
    )

    assert type(made.output) is diffusers.modular_pipelines.PipelineState
    assert (made.output.prompt, made.output.negative_prompt) == ("a photo of Mara Voss", "fog")
    assert made.output.images.shape[0] == made.outcome.images == 2
    again = m.guard(
        prompt="a photo of Mara Voss",
        negative_prompt="fog",
        num_images_per_prompt=2,
        generator=seeded(),
        **asked,
        output=["images", "prompt"],
    )
    assert torch.equal(again["images"], made.output.images)
    assert again["prompt"] == "a photo of Mara Voss"


def test_calls_in_several_threads_do_not_disturb_each_other(m):
    """Blocks are shared by all calls, guider and scheduler are not."""
    prompts = ["a photo of Mara Voss", "a red car", "a man", "two dogs"]
    expected = [m.draw(m.guard, prompt, seed) for seed, prompt in enumerate(prompts)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: m.draw(m.guard, each[1], each[0]), enumerate(prompts)))

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_guard_tests_itself_in_front_of_it(m):
    """As in front of any other pipe."""
    m.guard.self_test(**m.options)
