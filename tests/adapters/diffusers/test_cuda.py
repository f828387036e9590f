"""On a GPU the sequence is as exact as on a CPU: every family, both short formats, offloading, compiling, threads.

Skipped, and visibly so, where there is no GPU.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from embeds import CALL, EMBEDS, WITHIN
from guarded import Guarded, permissive

from apl_guard import Guard
from apl_guard.testing import random_prefix

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROMPT = "a photo of Mara Voss"
N = 6


def _on_gpu(family, dtype=torch.float32):
    m = Guarded(family, dtype)
    m.pipe.to("cuda")
    return m


def _by_hand(m, family, prompts, **options):
    """The picture of embeds that are made by hand, all of it on the GPU."""
    with torch.device("cuda"):
        embeds = EMBEDS[family](m, prompts)
    return m.draw(m.pipe, None, **embeds, **options)


@pytest.mark.parametrize("family", EMBEDS)
def test_the_picture_is_that_of_the_embeds_made_by_hand(family):
    """In every family, drawn by a pipe that is on the GPU."""
    m = _on_gpu(family)
    options = CALL.get(family, {})

    expected = _by_hand(m, family, [PROMPT], **options)
    drawn = m.draw(m.guard, PROMPT, **options)

    assert drawn.device.type == "cuda"
    torch.testing.assert_close(drawn, expected, rtol=0, atol=max(WITHIN.get(family, 0.0), 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_in_half_precision(family, dtype):
    """Vectors are rounded once, as the weights are; the picture equals that of embeds made in it, bit for bit."""
    m = _on_gpu(family, dtype)

    expected = _by_hand(m, family, [PROMPT])

    assert expected.dtype == dtype
    assert torch.equal(expected, m.draw(m.guard, PROMPT))


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "flux"])
def test_with_the_pipe_offloaded_to_the_processor(family, way):
    """Models, or their layers, come to the GPU for the moment in which they compute; the second picture is as right
    as the first, and those of the bare pipe stay what they were."""
    m = _on_gpu(family)
    expected, plain = m.draw(m.guard, PROMPT), m.draw(m.pipe, PROMPT)
    m.pipe.to("cpu")

    getattr(m.guard, way)()

    assert m.pipe.text_encoder.device.type != "cuda"
    for target, picture in ((m.guard, expected), (m.guard, expected), (m.pipe, plain)):
        torch.testing.assert_close(m.draw(target, PROMPT), picture, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["default", "cuda graphs"])
def test_with_a_compiled_text_encoder(options):
    """Compiled for the GPU before the guard came. The prefix is in place, and the bare pipe has none of it."""
    m = _on_gpu("stable_diffusion")
    expected, plain = m.draw(m.guard, PROMPT), m.draw(m.pipe, PROMPT)
    m.pipe.text_encoder = torch.compile(m.pipe.text_encoder, **options)

    for target, picture in ((m.pipe, plain), (m.guard, expected), (m.pipe, plain), (m.guard, expected)):
        torch.testing.assert_close(m.draw(target, PROMPT), picture, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, plain, rtol=1e-3, atol=1e-3)


def test_a_generator_of_the_gpu_is_consumed_as_without_a_guard():
    """Afterwards it gives the same number."""
    m = _on_gpu("stable_diffusion")
    after = []
    for target in (m.pipe, m.guard):
        generator = torch.Generator("cuda").manual_seed(3)
        target(PROMPT, num_inference_steps=2, output_type="latent", generator=generator)
        after.append(torch.rand(1, device="cuda", generator=generator))

    assert torch.equal(*after)


def test_threads_with_different_guards_and_a_user_of_the_bare_encoders():
    """Eight threads on one pipe get what each gets alone; whoever uses the encoders without a guard meets no prefix."""
    m = _on_gpu("stable_diffusion_xl")
    guards = [
        Guard(m.pipe, permissive("stable_diffusion_xl"), prefix=random_prefix(m.pipe, n=2 + i, seed=i))
        for i in range(8)
    ]
    alone = [m.draw(guard, PROMPT) for guard in guards]
    bare = _embeds(m.pipe)

    def works(i):
        return all(torch.equal(alone[i], m.draw(guards[i], PROMPT)) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        guarded = [pool.submit(works, i) for i in range(8)]
        while not all(each.done() for each in guarded):
            assert torch.equal(bare, _embeds(m.pipe))
    assert [each.result() for each in guarded] == [True] * 8


@torch.no_grad()
def _embeds(pipe):
    return pipe.encode_prompt(PROMPT, device="cuda", do_classifier_free_guidance=False)[0]


def test_the_self_test_passes():
    """Canary prompts reach the encoder on the GPU with the whole prefix in front."""
    _on_gpu("stable_diffusion").guard.self_test()
