"""Values of arguments with which a pipeline of diffusers would draw what the negative prompt says."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any

__all__ = ["SCALES", "SERIES", "bends_steps", "turns_guidance_round"]

# Classifier-free guidance: uncond + g · (cond − uncond). Below 1 a part of the negative prompt is drawn,
# below 0 the picture moves away from the protected prompt. With a second scale i for pictures, these count for
# uncond + g · (cond − picture) + i · (picture − uncond), where `picture` reads the negative prompt as well.
_GUIDANCE = ("guidance_scale", "true_cfg_scale", "prior_guidance_scale", "decoder_guidance_scale")
_OF_PICTURE = "image_guidance_scale"
# Multiples of a difference between two predictions for the prompt; below 0 the difference is taken the other way.
_OF_PROMPT = ("distilled_guidance_scale", "pag_scale", "skip_layer_guidance_scale")
# The same guidance, for each step.
_GUIDANCE_OF_STEPS = "guidance_schedule"
# The spread of noise levels; below 0 they rise.
_SPREAD = "std"
# A share: beyond 1 the sign of the whole prediction may turn.
_SHARE = "guidance_rescale"
# Steps on which noise grows lead away from the prompt and towards the negative one.
STEPS = ("sigmas", "timesteps")
SERIES = (*STEPS, _GUIDANCE_OF_STEPS)
"""Arguments that are judged by their numbers."""
SCALES = (*_GUIDANCE, _OF_PICTURE, *_OF_PROMPT, _SPREAD, _SHARE, "mu")
"""Arguments that are judged as a number."""


def turns_guidance_round(
    arguments: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({}), *, with_negative: bool
) -> bool:
    """Whether a guidance scale, or steps, among the arguments could draw what the negative prompt says.

    Args:
        arguments: Argument → value, where the caller gives one.
        defaults: Argument → default. A pipeline whose default is below 1, as that of some without guidance, means it.
        with_negative: Whether there is a negative prompt.

    Example:
        >>> turns_guidance_round({"guidance_scale": 0.5}, with_negative=True)
        True
        >>> turns_guidance_round({"guidance_scale": 0.5}, with_negative=False)
        False
    """
    least = 1.0 if with_negative else 0.0
    whole = {**defaults, **arguments}
    for name in (*_GUIDANCE, _OF_PICTURE):
        scale = whole.get(name)
        is_default = type(scale) in (int, float) and scale == defaults.get(name)
        if not is_default and not _is_within(scale, least, sys.float_info.max):
            return True
    if any(not _is_within(whole.get(name), 0, math.inf) for name in (*_OF_PROMPT, _SPREAD)):
        return True
    by_step = _levels(whole.get(_GUIDANCE_OF_STEPS))
    if by_step is None or not all(_is_within(scale, least, sys.float_info.max) for scale in by_step):
        return True
    if not _is_within(whole.get(_SHARE), 0, 1) or not all(_fall(whole.get(name)) for name in STEPS):
        return True
    by_picture = whole.get(_OF_PICTURE)
    return with_negative and by_picture is not None and by_picture > whole.get("guidance_scale", 0)


def _is_within(value: Any, least: float, most: float) -> bool:
    try:
        return value is None or (isinstance(value, Real) and least <= float(value) <= most)
    except OverflowError:
        return False


def _fall(steps: Any) -> bool:
    """Whether the noise levels of the steps never rise, and are none below 0."""
    levels = _levels(steps)
    return levels is not None and all(former >= latter for former, latter in itertools.pairwise([*levels, 0.0]))


def _levels(steps: Any) -> list[float] | None:
    """The noise levels of steps, or None where they are no numbers."""
    try:
        return [] if steps is None else [float(level) for level in steps]
    except (TypeError, ValueError, OverflowError):
        return None


def bends_steps(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether noise may grow on the steps that a scheduler makes of those in the arguments.

    One that shifts noise levels is made for levels from 0 to 1. Of others, which fall, it may make some that rise.

    Args:
        arguments: Argument → value.
        config: The configuration of the scheduler.

    Example:
        >>> bends_steps({"sigmas": [1.5, 1.2]}, {"shift": 1.0}), bends_steps({"sigmas": [14.6, 1.2]}, {})
        (True, False)
    """
    if "shift" not in config and not config.get("use_flow_sigmas"):
        return False
    most = {"sigmas": 1.0, "timesteps": float(config.get("num_train_timesteps", 1000))}
    if any(max(_levels(arguments.get(name)) or [0.0]) > most[name] for name in STEPS):
        return True
    least = math.ulp(0.0) if config.get("time_shift_type") == "linear" else -math.inf
    return not _is_within(arguments.get("mu"), least, math.inf)
