"""Each variant of a family is drawn through a guard, and its picture is that of the sequence made by hand."""

import inspect
from pathlib import Path

import diffusers
import pytest
import torch
from by_hand import clip_by_hand
from diffusers.pipelines.kandinsky5.pipeline_output import KandinskyImagePipelineOutput
from diffusers.pipelines.qwenimage import QwenImagePipelineOutput
from drawn_by_hand import draw_by_hand
from embeds import CALL, EMBEDS, WITHIN
from guarded import SLOTS, Guarded, Hand, permissive
from PIL import Image

from apl_guard import Guard
from apl_guard.adapters.diffusers.adapter import _count
from apl_guard.adapters.diffusers.families import reason_against
from apl_guard.adapters.diffusers.modular import is_modular
from apl_guard.detect.pictures import read_pictures
from apl_guard.testing import FAMILIES, VARIANTS, pictures_for, random_prefix, tiny_variant

PROMPTS = ["a photo of Mara Voss in a red shirt"]
# These take no prompt embeds for what a part of them reads; below it is shown what that part was given.
WITH_PRIOR = [
    name
    for name, variant in VARIANTS.items()
    if variant.family == "kandinsky_2_2" or name in ("KandinskyPriorPipeline", "StableUnCLIPPipeline")
]

# It takes pooled prompt embeds and does not pass them on.
LOSES_POOLED = {"KolorsImg2ImgPipeline"}


@pytest.fixture(scope="module")
def made():
    """Each family's pipe is built once, and its variants share it."""
    known = {}

    def get(family):
        if family not in known:
            known[family] = Guarded(family)
        return known[family]

    return get


class Drawn(Hand):
    """A variant with a guard."""

    def __init__(self, m, name):
        variant = VARIANTS[name]
        self.pipe = tiny_variant(m.pipe, name)
        own = [part for key, part in self.pipe.components.items() if "text_encoder" in key]
        shares = all(any(part is theirs for theirs in m.pipe.components.values()) for part in own)
        is_same = shares and "prior" not in "".join(m.prefix.vectors)
        self.prefix = m.prefix if is_same else random_prefix(self.pipe, n=6, slots=SLOTS.get(variant.family))
        self.guard = Guard(self.pipe, permissive(variant.family), prefix=self.prefix)
        kept = {key: value for key, value in m.options.items() if key not in variant.without}
        self.options = kept | dict(variant.options) | pictures_for(name) | CALL.get(variant.family, {})
        self.options |= CALL.get(name, {})
        if "output_type" in kept and "Prior" in name:
            self.options["output_type"] = "pt"

    def __call__(self, target, prompt, **options):
        options["prompt"] = prompt
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some draw from the autoencoder without the generator
            made = target(generator=torch.Generator().manual_seed(0), **(self.options | options))[0]
        return torch.stack(made) if isinstance(made, list) else made  # one picture, or its layers


def _drawn_with(drawn, embeds):
    """The picture of a bare pipe whose `encode_prompt` gives these embeds for its prompt."""
    _, negative, _, pooled_negative = drawn.pipe.encode_prompt(PROMPTS[0])
    result = (embeds["prompt_embeds"], negative, embeds["pooled_prompt_embeds"], pooled_negative)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn.pipe, "encode_prompt", lambda *_, **__: result)
        return drawn(drawn.pipe, prompt=PROMPTS[0])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in WITH_PRIOR])
def test_the_picture_of_a_variant_is_that_of_the_embeds_made_by_hand(made, name):
    """Image-to-image, inpaint, ControlNet, LCM, PAG and the rest, with the pictures that they take."""
    family = VARIANTS[name].family
    drawn = Drawn(made(family), name)
    if name in LOSES_POOLED:
        expected = _drawn_with(drawn, EMBEDS[family](drawn, PROMPTS))
    else:
        expected = draw_by_hand(drawn, drawn, PROMPTS, family, name)
    guarded = drawn(drawn.guard, prompt=PROMPTS[0])

    torch.testing.assert_close(guarded, expected, rtol=0, atol=WITHIN.get(family, 0.0))
    assert not torch.equal(guarded, drawn(drawn.pipe, prompt=PROMPTS[0]))


@pytest.mark.parametrize("name", ["KandinskyV22CombinedPipeline", *WITH_PRIOR])
def test_a_prior_is_given_the_embeds_made_by_hand(made, name):
    """What arrives at the model behind the text encoder: embeds, pooled output and mask."""
    if name in VARIANTS:
        drawn = Drawn(made(VARIANTS[name].family), name)
        pipe, guard, prefix = drawn.pipe, drawn.guard, drawn.prefix
    else:
        drawn = m = made("kandinsky_2_2")
        pipe, guard, prefix = m.pipe, m.guard, m.prefix
        drawn = lambda target, **options: m.draw(target, options["prompt"])  # noqa: E731
    slot = next(slot for slot in ("prior_text_encoder", "text_encoder") if slot in pipe.components)
    prior = pipe.components["prior_prior" if "prior_prior" in pipe.components else "prior"]
    tokenizer = pipe.components[slot.replace("text_encoder", "tokenizer")]
    expected = clip_by_hand(pipe.components[slot], tokenizer, PROMPTS, prefix.vectors[slot])
    seen = []
    hook = prior.register_forward_pre_hook(lambda _, args, options: seen.append(options), with_kwargs=True)

    with hook:
        drawn(guard, prompt=PROMPTS[0])

    assert len(seen) > 0
    for options in seen:
        assert torch.equal(options["encoder_hidden_states"][-1:], expected["last"])
        assert torch.equal(options["proj_embedding"][-1:], expected["projected"])
        assert torch.equal(options["attention_mask"][-1:].bool(), expected["mask"])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_pictures_that_a_pipeline_returns_without_a_tuple_are_counted(made, output_type):
    """The decoder of Stable Cascade, where no dict is asked for."""
    drawn = Drawn(made("stable_cascade_prior"), "StableCascadeDecoderPipeline")
    options = drawn.options | {"output_type": output_type, "return_dict": False, "num_images_per_prompt": 2}

    assert drawn.guard.generate(prompt=PROMPTS[0], **options).outcome.images == 2


def test_a_negative_prompt_beside_a_default_without_guidance_is_no_guidance(made):
    """The decoder of Stable Cascade uses none unless it is asked to."""
    drawn = Drawn(made("stable_cascade_prior"), "StableCascadeDecoderPipeline")
    asked = drawn.options | {"prompt": PROMPTS[0], "negative_prompt": "blur"}
    asked.pop("guidance_scale", None)

    assert drawn.guard.check(**asked).effective == "anonymize"
    assert drawn.guard.check(**asked, guidance_scale=0.5).effective == "block"


def test_the_layers_of_a_picture_are_counted_and_looked_at():
    """Each is a picture to the output check, so they are to the record."""
    layer = Image.new("RGBA", (8, 8))

    for output in (QwenImagePipelineOutput([[layer, layer]]), ([torch.zeros(2, 3, 8, 8)],)):
        assert _count(output[0]) == len(read_pictures(output)) == 2


def test_the_pictures_of_kandinsky_5_are_looked_at():
    """They have another name in what it returns."""
    assert len(read_pictures(KandinskyImagePipelineOutput(image=[Image.new("RGB", (8, 8))] * 2))) == 2


def test_every_covered_pipeline_is_drawn_in_a_test():
    """None is covered because it resembles another: each is a family's own or a variant here; the pages count them."""
    covered = {
        name
        for name in dir(diffusers)
        if name.endswith("Pipeline") and inspect.isclass(cls := getattr(diffusers, name, None))
        if (issubclass(cls, diffusers.DiffusionPipeline) or is_modular(cls)) and reason_against(cls) is None
    }

    assert covered == {family.pipeline for family in FAMILIES.values()} | VARIANTS.keys()
    for page in ("README.md", "CHANGELOG.md"):
        assert f"{len(covered)} pipelines" in (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
