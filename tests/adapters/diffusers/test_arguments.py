"""Nothing that a pipeline of the installed diffusers takes is left unclassified."""

import inspect
import sys

import diffusers
import pytest

from apl_guard import Guard, InvalidInput
from apl_guard.adapters.diffusers.arguments import HARMLESS, REWRITES, TEXT, channel_of, is_known
from apl_guard.adapters.diffusers.families import _REFUSED, _SUPPORTED, reason_against
from apl_guard.adapters.diffusers.modular import inputs_of, is_modular
from apl_guard.policy import Policy
from apl_guard.request import PROMPT_CHANNELS, Channel
from apl_guard.testing import FAMILIES


def _pipelines():
    """Every pipeline class that the installed diffusers exports and this machine can import."""
    found = {}
    for name in dir(diffusers):
        if "Pipeline" in name:
            cls = getattr(diffusers, name, None)  # it lists some that it does not have
            if (
                inspect.isclass(cls)
                and type(cls).__name__ != "DummyObject"
                and (issubclass(cls, diffusers.DiffusionPipeline) or is_modular(cls))
            ):
                found[name] = cls
    return found


PIPELINES = _pipelines()


def _arguments(cls):
    if is_modular(cls):
        return list(inputs_of(_blocks_of(cls))) if reason_against(cls) is None else []
    parameters = inspect.signature(cls.__call__).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][1:]


def _blocks_of(cls):
    """The blocks that a modular pipeline has unless it is told otherwise, without the one that the guard refuses."""
    blocks = getattr(diffusers, cls.default_blocks_name)()
    blocks.sub_blocks.pop("prompt_upsampler", None)
    return blocks


def _family(cls):
    return cls.__module__.split(".")[2]


def test_every_argument_of_every_covered_pipeline_is_classified():
    """A new argument in a new release of diffusers fails here, by class and name."""
    unknown = [
        f"{name}({argument})"
        for name, cls in PIPELINES.items()
        if (_family(cls) in _SUPPORTED or is_modular(cls)) and name not in _REFUSED and "prompt" in _arguments(cls)
        for argument in _arguments(cls)
        if not is_known(argument)
    ]

    assert unknown == []


def test_the_cleaning_of_every_covered_pipeline_is_known():
    """One that resolves entities in a way of its own would read names that nobody looked at."""
    cleaning = [
        cls
        for cls in PIPELINES.values()
        if reason_against(cls) is None and "unescape(" in inspect.getsource(sys.modules[cls.__module__])
    ]

    assert len(cleaning) > 10
    for cls in cleaning:
        module = sys.modules[cls.__module__]
        source = inspect.getsource(cls)
        ways = [hasattr(cls, "_clean_caption"), hasattr(module, "prompt_clean"), "self.text_preprocessor" in source]
        assert any(ways), cls.__name__


def test_every_pipeline_is_covered_or_refused_with_a_reason():
    """Whatever the installed diffusers offers: no class in between, and the main ones are covered."""
    covered = {name for name, cls in PIPELINES.items() if reason_against(cls) is None}

    assert all(reason_against(cls) for name, cls in PIPELINES.items() if name not in covered)
    assert len(PIPELINES) > 200
    assert covered >= {family.pipeline for family in FAMILIES.values()}
    for stem in ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux"):
        assert {f"{stem}{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint", "ControlNet")} <= covered


def test_a_modular_pipeline_is_refused_with_what_to_use_instead():
    pipe = object.__new__(diffusers.StableDiffusionXLModularPipeline)

    with pytest.raises(
        InvalidInput, match=r"^pipe: StableDiffusionXLModularPipeline is not .*; use the ordinary pipeline"
    ):
        Guard(pipe)


@pytest.mark.skipif(not hasattr(diffusers, "AnimaModularPipeline"), reason="this diffusers has no Anima")
def test_one_without_an_ordinary_pipeline_is_refused_with_the_reason():
    """Anima hands the tokens of the prompt to its conditioner, too, past the text encoder."""
    with pytest.raises(InvalidInput, match=r"AnimaModularPipeline is not covered: .* reads the tokens of the prompt"):
        Guard(object.__new__(diffusers.AnimaModularPipeline))


@pytest.mark.parametrize("name", ["WanPipeline", "StableAudioPipeline", "BriaFibo2Pipeline", "OmniGenPipeline"])
def test_a_refusal_names_the_class_and_the_reason(name):
    """The pipe does not even have to work: its class is enough."""
    pipe = object.__new__(getattr(diffusers, name))

    with pytest.raises(InvalidInput, match=rf"{name} is not covered: .+"):
        Guard(pipe)


def test_the_tables_do_not_contradict_each_other():
    """An argument is a channel, or harmless, or rewrites the prompt."""
    arguments = {argument for cls in PIPELINES.values() for argument in _arguments(cls)}
    channels = {argument for argument in arguments if channel_of(argument, "") is not None}

    assert not channels & HARMLESS
    assert not channels & REWRITES.keys()
    assert not HARMLESS & REWRITES.keys()
    assert arguments | {"output"} >= HARMLESS - {"callback_steps"}, "an argument that nothing takes any more"
    assert TEXT.keys() <= channels


def test_the_default_policy_names_every_channel():
    """Prompts get the prefix; what no prefix protects is blocked by a rule, not by chance."""
    spec = Policy.load("anonymize_faces").spec
    named = {channel: rule.then.action.value for rule in spec.rules for channel in rule.when.channels}

    assert named.keys() == set(Channel)
    assert {named[channel] for channel in PROMPT_CHANNELS} == {"anonymize"}


def test_a_picture_that_steers_is_told_from_one_that_is_painted_over():
    """`image` means one thing in a ControlNet pipeline and another in image-to-image."""
    assert channel_of("image", "StableDiffusionControlNetPipeline") == Channel.CONTROL_IMAGE
    assert channel_of("image", "StableDiffusionControlNetImg2ImgPipeline") == Channel.IMAGE
