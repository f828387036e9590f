"""In every family of pipelines, the picture is that of the sequence made by hand."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from drawn_by_hand import draw_by_hand
from embeds import CALL, EMBEDS, LONG, WITHIN
from guarded import Guarded

from apl_guard import Guard, PrefixNotApplied
from apl_guard.testing import FAMILIES, random_prefix

XL = "stable_diffusion_xl"
SCALES = ("guidance_scale", "true_cfg_scale")


def _takes(pipeline):
    return inspect.signature(getattr(diffusers, pipeline).__call__).parameters


@pytest.fixture(scope="module")
def made():
    """Each pipe is built once."""
    known = {}

    def get(family):
        if family not in known:
            if (package := FAMILIES[family].needs) is not None:
                pytest.importorskip(package, reason=f"the pipeline needs {package}, which is not installed")
            known[family] = Guarded(family)
        return known[family]

    return get


PROMPTS = {"short": "a photo of a man", "empty": "", "several": ["a cat", "a photo of Mara Voss", LONG]}
# Kandinsky 5 takes as much from each prompt as from the longest, see below.
ONE = {**{name: PROMPTS[name] for name in ("short", "empty")}, "long": LONG}
APART = {
    **dict.fromkeys(("dreamlite", "flux_3", "flux_3_distilled"), ONE),  # they take no lists
    "kandinsky_5": {**PROMPTS, "several": PROMPTS["several"][:2], "long": LONG},
    "ideogram_4": {**PROMPTS, "several": PROMPTS["several"][:2]},  # it cuts none
    "longcat_image": PROMPTS | {"quoted": ['"open" in "chalk", says Mara\'s shop', "an open door"]},
}


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        pytest.param(family, prompt, id=f"{family}-{name}")
        for family in FAMILIES
        if family != "kandinsky_2_2"
        for name, prompt in APART.get(family, PROMPTS).items()
    ],
)
def test_the_picture_is_that_of_the_embeds_made_by_hand(made, family, prompt):
    """Prompt embeds and pooled outputs of every slot, for short, empty, over-long and several prompts."""
    m = made(family)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    options = CALL.get(family, {})

    expected = draw_by_hand(m.draw, m, prompts, family, **options)

    torch.testing.assert_close(m.draw(m.guard, prompt, **options), expected, rtol=0, atol=WITHIN.get(family, 0.0))


@pytest.mark.parametrize(
    "options",
    [{"num_images_per_prompt": 2}, {"negative_prompt": "a dog"}, {"guidance_scale": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_call_work_as_in_the_bare_pipe(made, options):
    """Several pictures for each of several prompts, a negative prompt that stays plain, no guidance: bit for bit."""
    m = made(XL)
    prompts = ["a cat", "a photo of Mara Voss"]

    expected = m.draw(m.pipe, None, **EMBEDS[XL](m, prompts), **options)

    assert torch.equal(expected, m.draw(m.guard, prompts, **options))


@pytest.mark.parametrize("family", ["qwen_image_21", "nucleus_image", "longcat_image", "ernie_image"])
def test_several_pictures_of_several_prompts_beside_long_negative_prompts(made, family):
    """The prompts get the prefix, and the negative prompts, longer than they are, stay plain: bit for bit."""
    m = made(family)
    prompts, scale = ["a cat", "a photo of Mara Voss"], [s for s in SCALES if s in _takes(FAMILIES[family].pipeline)]
    options = dict.fromkeys(scale, 3.0) | {"negative_prompt": [LONG, "a dog"], "num_images_per_prompt": 2}

    expected = draw_by_hand(m.draw, m, prompts, family, **options)

    assert len(expected) == 4
    assert torch.equal(expected, m.draw(m.guard, prompts, **options))
    assert not torch.equal(expected, m.draw(m.guard, prompts, **options | {"negative_prompt": ["", ""]}))


def test_clip_skip_takes_an_earlier_layer_of_the_same_sequence(made):
    """One layer earlier in both encoders, with the prefix in place."""
    m = made(XL)
    slots = ("text_encoder", "text_encoder_2")
    embeds = EMBEDS[XL](m, ["a cat"])
    embeds["prompt_embeds"] = torch.cat([m.clip(slot, ["a cat"], "hidden")[-3] for slot in slots], -1)

    assert torch.equal(m.draw(m.pipe, None, **embeds), m.draw(m.guard, "a cat", clip_skip=1))


@pytest.mark.parametrize(
    "family", ["stable_diffusion_3", "hunyuan_dit", "kolors", "kandinsky_2_1", "krea_2", "longcat_image"]
)
def test_the_change_on_record_is_against_what_the_bare_pipe_gives_its_encoders(made, family):
    """Whatever stands at which side of the padding, and with or without a mask or positions."""
    m = made(family)
    bare, guarded = _answers(m, m.pipe), _answers(m, m.guard)

    outcome = m.guard.generate(prompt="a photo of a man", **m.options).outcome

    for slot, changes in outcome.change.items():
        with_prefix, without = guarded[slot][0], bare[slot][0]
        expected = (with_prefix - without).norm() / without.norm()
        assert changes[0] == pytest.approx(float(expected), rel=1e-4)


def _answers(m, target):
    """Slot → what the text encoder answered to a prompt, each time that it was asked."""
    found = {slot: [] for slot in m.prefix.vectors}

    def note(slot):
        def hook(encoder, args, output):
            hidden = getattr(output, "hidden_states", None)
            answer = output[0] if hidden is None else hidden[-1]
            rows = 1 if slot.endswith("text_encoder") and encoder.__class__.__name__ == "ChatGLMModel" else 0
            found[slot].append(answer.select(rows, -1))

        return hook

    hooks = [m.pipe.components[slot].register_forward_hook(note(slot)) for slot in found]
    m.draw(target, "a photo of a man")
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "family", [name for name, family in FAMILIES.items() if "negative_prompt" in _takes(family.pipeline)]
)
def test_a_negative_prompt_that_stands_in_the_prompt_is_read_as_ever(made, family):
    """Each text encoder is given the tokens that the bare pipe gives it, in every family."""
    m = made(family)
    scales = {name: 3.0 for name in SCALES if name in _takes(FAMILIES[family].pipeline)}
    asked = {"prompt": "a photo of Mara in red", "negative_prompt": "Mara in red"} | scales

    bare, plain, guarded = (
        _rows_read(m, target, **asked | more)
        for target, more in ((m.pipe, {}), (m.pipe, {"negative_prompt": ""}), (m.guard, {}))
    )

    assert len(bare - plain) > 0
    assert bare - plain <= guarded


def _rows_read(m, target, **options):
    """Slot and tokens of each row, without padding, that text encoders were given."""
    found = set()

    def note(slot):
        padding = m._pair(slot)[1].pad_token_id

        def hook(_, args, options):
            ids = options.get("input_ids", args[0] if args else None)
            found.update(
                (slot, tuple(i for i in row if i != padding)) for row in ids.reshape(-1, ids.shape[-1]).tolist()
            )

        return hook

    hooks = [
        m.pipe.components[slot].register_forward_pre_hook(note(slot), with_kwargs=True) for slot in m.prefix.vectors
    ]
    m.draw(target, options.pop("prompt"), **options)
    for hook in hooks:
        hook.remove()
    return found


def test_a_guider_keeps_its_state_for_its_own_call(made):
    """That of the bare pipe is as it was: two calls at once do not share the average that guides them."""
    m = made("hunyuan_image")
    before = {name: value for name, value in vars(m.pipe.guider).items() if name != "_count_prepared"}

    m.draw(m.guard, "a photo of a man")

    assert {name: vars(m.pipe.guider)[name] for name in before} == before


def test_a_prompt_that_is_too_long_with_its_prefix_is_an_error_of_the_pipeline_that_cuts_none(made):
    """Ideogram 4: the prefix is never pushed out."""
    m = made("ideogram_4")

    with pytest.raises(ValueError, match="exceeds max_sequence_length"):
        m.draw(m.guard, LONG)


def test_a_pipeline_that_checks_its_prompts_checks_what_the_user_wrote(made, monkeypatch):
    """Cosmos does, with models of its own, and refuses what they find unsafe."""
    m, seen = made("cosmos_2"), []
    monkeypatch.setattr(m.pipe.safety_checker, "check_text_safety", lambda text: seen.append(text) or text != "a cat")

    m.draw(m.guard, ["a dog", "  a man"])
    with pytest.raises(ValueError, match="Guardrail detected"):
        m.draw(m.guard, "a cat")

    assert seen == ["a dog", "  a man", "a cat"]


def test_letters_to_draw_are_read_by_an_encoder_that_gets_no_prefix_and_is_on_record(made):
    """Hunyuan-Image gives what stands in quotes to a second encoder, for the shapes of the letters."""
    m = made("hunyuan_image")

    outcome = m.guard.generate(prompt='a sign that says "open"', **m.options).outcome

    assert outcome.prefix_rows == {"text_encoder": (6,)}
    assert outcome.slots_without_prefix == ("text_encoder_2",)


def test_a_pipeline_that_cuts_a_prompt_away_with_its_prefix_gives_no_picture(made):
    """Kandinsky 5 cuts as many letters from a short prompt as an over-long one beside it has too many."""
    m = made("kandinsky_5")

    with pytest.raises(PrefixNotApplied, match="expected 6 in front of each of 2 prompts"):
        m.draw(m.guard, ["a cat", LONG])


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
    m = made(XL)
    guards = [Guard(m.pipe, prefix=random_prefix(m.pipe, n=2 + i, seed=i)) for i in range(8)]
    alone = [m.draw(guard, "a man", num_inference_steps=1, guidance_scale=1.0) for guard in guards]
    with torch.no_grad():
        bare = m.pipe.encode_prompt("a man", device="cpu", do_classifier_free_guidance=False)[0]

    def works(i):
        return torch.equal(alone[i], m.draw(guards[i], "a man", num_inference_steps=1, guidance_scale=1.0))

    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        guarded = [pool.submit(works, i) for i in range(8)]
        while not all(each.done() for each in guarded):
            again = m.pipe.encode_prompt("a man", device="cpu", do_classifier_free_guidance=False)[0]
            assert torch.equal(bare, again)
    assert [each.result() for each in guarded] == [True] * 8
