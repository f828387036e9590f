"""In every family of pipelines, the picture is that of the sequence made by hand."""

import threading

import pytest
import torch
from by_hand import clip_by_hand, encoder_by_hand, row_by_hand

from apl_guard import Guard
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

N = 6
LONG = "a photo of a man in a red shirt, " * 20


class Guarded:
    """A tiny pipe with a guard and the prefix it uses."""

    def __init__(self, family):
        self.pipe = tiny_pipe(family=family)
        self.prefix = random_prefix(self.pipe, n=N)
        self.guard = Guard(self.pipe, prefix=self.prefix)
        self.options = FAMILIES[family].options | {"output_type": "latent"}

    def draw(self, target, prompt, seed=0, **options):
        return target(prompt, generator=torch.Generator().manual_seed(seed), **(self.options | options)).images

    def clip(self, slot, prompts, key):
        tokenizer = getattr(self.pipe, slot.replace("text_encoder", "tokenizer"))
        return clip_by_hand(getattr(self.pipe, slot), tokenizer, prompts, self.prefix.vectors[slot])[key]

    def t5(self, slot, prompts, length, masked):
        tokenizer = getattr(self.pipe, slot.replace("text_encoder", "tokenizer"))
        rows = [row_by_hand(tokenizer, prompt, N, length) for prompt in prompts]
        output, mask = encoder_by_hand(
            getattr(self.pipe, slot), tokenizer, rows, self.prefix.vectors[slot], masked, length
        )
        return output[0], mask


@pytest.fixture(scope="module")
def made():
    """Each pipe is built once."""
    known = {}

    def get(family):
        if family not in known:
            known[family] = Guarded(family)
        return known[family]

    return get


def _stable_diffusion(m, prompts):
    return {"prompt_embeds": m.clip("text_encoder", prompts, "last")}


def _stable_diffusion_xl(m, prompts):
    slots = ("text_encoder", "text_encoder_2")
    return {
        "prompt_embeds": torch.cat([m.clip(slot, prompts, "hidden")[-2] for slot in slots], -1),
        "pooled_prompt_embeds": m.clip("text_encoder_2", prompts, "projected"),
    }


def _stable_diffusion_3(m, prompts):
    slots = ("text_encoder", "text_encoder_2")
    both = torch.cat([m.clip(slot, prompts, "hidden")[-2] for slot in slots], -1)
    t5, _ = m.t5("text_encoder_3", prompts, 40, masked=False)
    padded = torch.nn.functional.pad(both, (0, t5.shape[-1] - both.shape[-1]))
    return {
        "prompt_embeds": torch.cat([padded, t5], 1),
        "pooled_prompt_embeds": torch.cat([m.clip(slot, prompts, "projected") for slot in slots], -1),
    }


def _flux(m, prompts):
    return {
        "prompt_embeds": m.t5("text_encoder_2", prompts, 48, masked=False)[0],
        "pooled_prompt_embeds": m.clip("text_encoder", prompts, "pooled"),
    }


def _pixart(m, prompts):
    # this pipeline puts its prompts in lower case
    embeds, mask = m.t5("text_encoder", [prompt.lower().strip() for prompt in prompts], 40, masked=True)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


EMBEDS = {
    "stable_diffusion": _stable_diffusion,
    "stable_diffusion_xl": _stable_diffusion_xl,
    "stable_diffusion_3": _stable_diffusion_3,
    "flux": _flux,
    "pixart": _pixart,
}
# Attention as T5 has it gives the last bits differently for a row of vectors and a row of ids.
WITHIN = {"stable_diffusion_3": 1e-5, "pixart": 1e-5}


@pytest.mark.parametrize(
    "prompt",
    ["a photo of a man", "", LONG, ["a cat", "a photo of Mara Voss", LONG]],
    ids=["short", "empty", "long", "several"],
)
@pytest.mark.parametrize("family", EMBEDS)
def test_the_picture_is_that_of_the_embeds_made_by_hand(made, family, prompt):
    """Prompt embeds and pooled outputs of every slot, for short, empty, over-long and several prompts."""
    m = made(family)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    # Without guidance, because with it this pipeline wants embeds for the negative prompt as well.
    options = {"guidance_scale": 1.0, "negative_prompt": None} if family == "pixart" else {}

    expected = m.draw(m.pipe, None, **EMBEDS[family](m, prompts), **options)

    torch.testing.assert_close(m.draw(m.guard, prompt, **options), expected, rtol=0, atol=WITHIN.get(family, 0.0))


@pytest.mark.parametrize(
    "options",
    [{"num_images_per_prompt": 2}, {"negative_prompt": "a dog"}, {"guidance_scale": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_call_work_as_in_the_bare_pipe(made, options):
    """Several pictures for each of several prompts, a negative prompt that stays plain, no guidance: bit for bit."""
    m = made("stable_diffusion_xl")
    prompts = ["a cat", "a photo of Mara Voss"]

    expected = m.draw(m.pipe, None, **_stable_diffusion_xl(m, prompts), **options)

    assert torch.equal(expected, m.draw(m.guard, prompts, **options))


def test_clip_skip_takes_an_earlier_layer_of_the_same_sequence(made):
    """One layer earlier in both encoders, with the prefix in place."""
    m = made("stable_diffusion_xl")
    slots = ("text_encoder", "text_encoder_2")
    embeds = _stable_diffusion_xl(m, ["a cat"])
    embeds["prompt_embeds"] = torch.cat([m.clip(slot, ["a cat"], "hidden")[-3] for slot in slots], -1)

    assert torch.equal(m.draw(m.pipe, None, **embeds), m.draw(m.guard, "a cat", clip_skip=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bare_pipe_gives_the_same_picture_before_and_after(made, family):
    """Bit for bit, in every family; and the guarded picture is another one."""
    m = made(family)
    before = m.draw(m.pipe, "a man")

    guarded = m.draw(m.guard, "a man")

    assert torch.equal(before, m.draw(m.pipe, "a man"))
    assert not torch.equal(before, guarded)


def test_threads_with_different_guards_and_a_user_of_the_bare_encoders(made):
    """Eight threads on one pipe with several text encoders get what each gets alone; the encoders stay the same."""
    m = made("stable_diffusion_xl")
    guards = [Guard(m.pipe, prefix=random_prefix(m.pipe, n=2 + i, seed=i)) for i in range(8)]
    alone = [m.draw(guard, "a man", num_inference_steps=1, guidance_scale=1.0) for guard in guards]
    with torch.no_grad():
        bare = m.pipe.encode_prompt("a man", device="cpu", do_classifier_free_guidance=False)[0]
    wrong = []

    def work(i):
        if not torch.equal(alone[i], m.draw(guards[i], "a man", num_inference_steps=1, guidance_scale=1.0)):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with torch.no_grad():
            again = m.pipe.encode_prompt("a man", device="cpu", do_classifier_free_guidance=False)[0]
        if not torch.equal(bare, again):
            wrong.append("bare")
    for thread in threads:
        thread.join()

    assert wrong == []
