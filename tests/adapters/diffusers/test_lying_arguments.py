"""Objects that answer in one way while the guard decides and in another while the pipe draws."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from apl_guard import Guard, InvalidInput, PolicyBlocked
from apl_guard.testing import random_prefix, tiny_pipe


class Harmless(float):
    """-3 for torch, and 7.5 for whoever asks for a plain number."""

    def __float__(self):
        return 7.5

    def __ge__(self, other):
        return True

    __le__ = __ge__


class Small(int):
    """Never more than what it is compared with."""

    def __ge__(self, other):
        return True

    __le__ = __ge__


class Empty(dict):
    """Says that nothing is in it."""

    def __len__(self):
        return 0


class Alternating(tuple):
    """Falls the first time that it is read, and rises the second."""

    def __iter__(self):
        self.asked = getattr(self, "asked", 0) + 1
        return iter([900, 10] if self.asked == 1 else [10, 900])


class Switched:
    """False the first time that it is asked."""

    asked = 0

    def __bool__(self):
        self.asked += 1
        return self.asked > 1


@pytest.fixture(scope="module")
def seen():
    """The arguments that reach the pipe."""
    return {}


@pytest.fixture(scope="module")
def guard(seen):
    """A guard in front of a pipe that draws nothing."""

    class Listening(StableDiffusionPipeline):
        def __call__(
            self,
            prompt=None,
            guidance_scale=7.5,
            clip_skip=None,
            timesteps=None,
            sigmas=None,
            negative_prompt=None,
            cross_attention_kwargs=None,
            clean_caption=False,
        ):
            seen.clear()
            seen.update(locals())
            self.encode_prompt(prompt, "cpu", 1, False)
            return ([],)

    pipe = Listening(**tiny_pipe().components, requires_safety_checker=False)
    return Guard(pipe, prefix=random_prefix(pipe, n=4))


@pytest.mark.parametrize(
    ("name", "value", "runs"),
    [
        ("guidance_scale", Harmless(-3), 7.5),
        ("guidance_scale", np.float32(2.5), 2.5),
        ("guidance_scale", torch.tensor(2.5), 2.5),
        ("clip_skip", np.int64(1), 1),
        ("timesteps", Alternating([10, 900]), (900, 10)),
        ("sigmas", np.array([14.5, 1.0]), [14.5, 1.0]),
        ("sigmas", iter([14.5, 1.0]), [14.5, 1.0]),
        ("clean_caption", Switched(), False),
        ("cross_attention_kwargs", {}, {}),
    ],
)
def test_what_was_decided_about_is_what_runs(guard, seen, name, value, runs):
    """In plain numbers, which say the same to everybody."""
    guard("a man", negative_prompt="Mara Voss", **{name: value})

    assert seen[name] == runs
    assert type(seen[name]) is type(runs)
    assert seen[name] is not value


@pytest.mark.parametrize(
    ("channel", "arguments"),
    [("attention", {"clip_skip": Small(11)}), ("attention", {"cross_attention_kwargs": Empty(scale=0.5)})],
)
def test_what_an_object_says_of_itself_does_not_count(guard, channel, arguments):
    """Its number, and what is in it, do."""
    with pytest.raises(PolicyBlocked, match=f"'{channel}'"):
        guard("a man", **arguments)


def test_an_empty_dict_that_is_filled_later_changes_nothing(guard, seen):
    """The pipe gets one of its own."""
    given = {}
    guard("a man", cross_attention_kwargs=given)
    given["scale"] = 0.5

    assert seen["cross_attention_kwargs"] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("guidance_scale", "7"), ("clip_skip", object()), ("sigmas", [[1.0]]), ("timesteps", 5), ("guidance_scale", [7])],
)
def test_what_cannot_be_judged_is_an_error_that_says_so(guard, name, value):
    """And names the type alone."""
    with pytest.raises(InvalidInput, match=f"{name}: found {type(value).__name__}; expected"):
        guard("a man", **{name: value})
