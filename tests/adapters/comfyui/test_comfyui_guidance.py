"""In front of ComfyUI: no number and no region of a workflow draws what its negative prompt says."""

import pytest
from workflows import node, workflow

from apl_guard import PolicyBlocked
from apl_guard.adapters.comfyui.graph import read_graph
from apl_guard.request import Channel


def opens_guidance(asked):
    graph = read_graph(asked, frozenset({"sd15.safetensors"}), frozenset())
    assert not graph.unknown
    return Channel.GUIDANCE in graph.channels


def behind(side, kind, negative="Mara Voss", **inputs):
    """A workflow in which a node stands between the text and the sampler."""
    asked = workflow("a man", negative)
    asked["20"] = node(kind, conditioning=[{"positive": "3", "negative": "4"}[side], 0], **inputs)
    asked["5"]["inputs"][side] = ["20", 0]
    return asked


@pytest.mark.parametrize(
    ("kind", "field", "fine", "beyond"),
    [
        ("ConditioningAverage", "conditioning_to_strength", 0.3, -1.0),
        ("ConditioningAverage", "conditioning_to_strength", 1.0, 2.0),
        ("ConditioningSetAreaStrength", "strength", 1.0, -1.0),
        ("LatentBlend", "blend_factor", 0.5, 2.0),
        ("RescaleCFG", "multiplier", 0.7, 50.0),
        ("PerturbedAttentionGuidance", "scale", 3.0, -9.0),
        ("SolidMask", "value", 1, -1),
        ("ModelSamplingSD3", "shift", 3.0, -2.0),
        ("FluxGuidance", "guidance", 3.5, -3.5),
    ],
)
def test_a_number_beyond_the_limits_of_its_node(kind, field, fine, beyond):
    """The server lets linked ones pass: in a negative prompt, twice "" less a name draws the name."""
    for value, is_turned in ((fine, False), (beyond, True), ("1", True)):
        for given in (value, ["8", 0]):
            asked = workflow("a man", "Mara Voss") | {"8": node("PrimitiveFloat", value=value)}
            asked["20"] = node(kind, conditioning_to=["4", 0], conditioning=["4", 0], **{field: given})
            assert opens_guidance(asked) == is_turned, (value, given)


def test_a_number_that_nobody_can_read():
    """One that is computed by another node than the plain ones."""
    assert opens_guidance(behind("negative", "ConditioningSetAreaStrength", strength=["2", 0]))


@pytest.mark.parametrize("kind", ["ExponentialScheduler", "KarrasScheduler", "PolyexponentialScheduler"])
def test_steps_that_add_noise(kind):
    """They go away from the prompt, towards the negative one."""
    for least, is_turned in ((0.03, False), (14.6, True)):
        asked = workflow("a man", "Mara Voss")
        asked["20"] = node(kind, steps=4, sigma_max=1.0, sigma_min=least, rho=7.0)
        assert opens_guidance(asked) == is_turned


EVERYWHERE = {"x": 0, "y": 0, "width": 64, "height": 64, "strength": 1.0}


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("ConditioningSetTimestepRange", {"start": 0.9, "end": 1.0}),
        ("ConditioningSetTimestepRange", {"start": 0.0, "end": 0.0}),
        ("ConditioningSetTimestepRange", {"start": ["2", 0], "end": 1.0}),
        ("ConditioningSetArea", EVERYWHERE),
        ("ConditioningSetMask", {"mask": ["9", 0], "strength": 1.0, "set_cond_area": "default"}),
        ("ConditioningSetAreaStrength", {"strength": 0.0}),
    ],
)
def test_a_prompt_that_is_not_everywhere(kind, inputs):
    """Where it is not shown the negative prompt alone steers, if it says anything; another text may be shown there."""
    mask = {"9": node("SolidMask", value=0.0, width=64, height=64)}
    asked = behind("positive", kind, **inputs) | mask
    assert opens_guidance(asked)
    assert not opens_guidance(behind("positive", kind, negative="", **inputs) | mask)
    assert not opens_guidance(behind("negative", kind, **inputs) | mask)

    asked["21"] = node("ConditioningCombine", conditioning_1=["20", 0], conditioning_2=["3", 0])
    asked["5"]["inputs"]["positive"] = ["21", 0]
    assert not opens_guidance(asked)


def test_prompts_that_take_turns():
    """One for the beginning and one for the end is fine, but for a gap between them."""
    for start, is_turned in ((0.4, False), (0.5, False), (0.6, True)):
        asked = behind("positive", "ConditioningSetTimestepRange", start=0.0, end=0.5)
        asked["21"] = node("ConditioningSetTimestepRange", conditioning=["3", 0], start=start, end=1.0)
        asked["22"] = node("ConditioningCombine", conditioning_1=["20", 0], conditioning_2=["21", 0])
        asked["5"]["inputs"]["positive"] = ["22", 0]
        assert opens_guidance(asked) == is_turned


def test_a_second_range_writes_over_the_first():
    """As in ComfyUI: the one that is nearer to the sampler counts."""
    asked = behind("positive", "ConditioningSetTimestepRange", start=0.9, end=1.0)
    asked["21"] = node("ConditioningSetTimestepRange", conditioning=["20", 0], start=0.0, end=1.0)
    asked["5"]["inputs"]["positive"] = ["21", 0]
    assert not opens_guidance(asked)
    asked["20"]["inputs"] |= {"start": 0.0}
    asked["21"]["inputs"] |= {"start": 0.9}
    assert opens_guidance(asked)


def test_each_sampler_is_looked_at():
    """The first is fine, and the second is not."""
    asked = behind("positive", "ConditioningSetTimestepRange", start=0.9, end=1.0)
    asked["30"] = node("KSampler", model=["1", 0], positive=["3", 0], negative=["4", 0], latent_image=["2", 0], cfg=7)
    asked["5"]["inputs"]["latent_image"] = ["30", 0]
    assert opens_guidance(asked)


def test_a_zeroed_negative_prompt_as_prompt(guard, server):
    """Of some text encoders, as of the T5 of HunyuanDiT, a part is not set to zero."""
    asked = workflow("a man", "Mara Voss") | {"20": node("ConditioningZeroOut", conditioning=["4", 0])}
    asked["5"]["inputs"]["positive"] = ["20", 0]
    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard(asked)
    assert server.posted("/prompt") == []
