"""Whether the numbers and regions of a workflow of ComfyUI could turn its guidance round, so that it draws what the
negative prompt says, which has no prefix.

ComfyUI holds a number against the limits of its node only where the number stands in the node itself; one that comes
from a node of its own is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .links import ENDS, Nodes, link_in

__all__ = ["turns_guidance_round"]

# Class → input → its limits, those of ComfyUI. Beyond them a mean becomes a difference, or a direction its opposite.
_STRENGTH = {"strength": (0.0, 10.0)}
_NOISE = {"sigma_max": (0.0, 5000.0), "sigma_min": (0.0, 5000.0), "rho": (0.0, 100.0)}
_FREE_U = dict.fromkeys(("b1", "b2", "s1", "s2"), (0.0, 10.0))
_LIMITS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "CLIPTextEncodeFlux": {"guidance": (0.0, 100.0)},
    "ConditioningAverage": {"conditioning_to_strength": (0.0, 1.0)},
    "ConditioningSetArea": _STRENGTH,
    "ConditioningSetAreaPercentage": _STRENGTH,
    "ConditioningSetAreaStrength": _STRENGTH,
    "ConditioningSetMask": _STRENGTH,
    "ExponentialScheduler": _NOISE,
    "FluxGuidance": {"guidance": (0.0, 100.0)},
    "FreeU": _FREE_U,
    "FreeU_V2": _FREE_U,
    "KarrasScheduler": _NOISE,
    "LatentBlend": {"blend_factor": (0.0, 1.0)},
    "ModelSamplingAuraFlow": {"shift": (0.0, 100.0)},
    "ModelSamplingContinuousEDM": _NOISE,
    "ModelSamplingSD3": {"shift": (0.0, 100.0)},
    "PerturbedAttentionGuidance": {"scale": (0.0, 100.0)},
    "PolyexponentialScheduler": _NOISE,
    "RescaleCFG": {"multiplier": (0.0, 1.0)},
    "SolidMask": {"value": (0.0, 1.0)},
}
_NUMBERS = {"PrimitiveFloat", "PrimitiveInt"}
# These show a conditioning in a part of the picture, or on a part of the way to it.
_PART_OF_PICTURE = {"ConditioningSetArea", "ConditioningSetAreaPercentage", "ConditioningSetMask"}
_PART_OF_WAY = "ConditioningSetTimestepRange"
_WEIGHED, _LEAST_STRENGTH = "ConditioningSetAreaStrength", 0.01
# These give on where and when the first of two conditionings is shown.
_OF_FIRST = {"ConditioningAverage": "conditioning_to", "ConditioningConcat": "conditioning_to"}


def turns_guidance_round(nodes: Nodes, *, with_negative: bool) -> bool:
    """Whether a workflow could draw what a negative prompt says.

    Args:
        nodes: The workflow.
        with_negative: Whether a negative prompt says anything.
    """
    for node in nodes.values():
        kind, inputs = node["class_type"], node["inputs"]
        limits = _LIMITS.get(kind, {})
        if any(
            not low <= _number(nodes, inputs[name]) <= high for name, (low, high) in limits.items() if name in inputs
        ):
            return True
        # Steps that add noise go away from the prompt and towards the negative one.
        if limits is _NOISE and _number(nodes, inputs.get("sigma_min")) > _number(nodes, inputs.get("sigma_max")):
            return True
        # Where no conditioning steers, the negative prompt is all that a sampler has.
        if with_negative and kind in ENDS and "negative" in inputs and not _steers_all(nodes, inputs.get("positive")):
            return True
    return False


def _steers_all(nodes: Nodes, positive: Any) -> bool:
    """Whether at each moment some conditioning steers the whole picture."""
    spans: set[tuple[float, float]] = set()
    seen: set[Any] = set()
    waiting: list[tuple[Any, tuple[float, float] | None]] = [(positive, None)]
    while waiting:
        value, span = waiting.pop()
        link = link_in(value)
        if link is None or (link, span) in seen:
            continue
        seen.add((link, span))
        kind, inputs = nodes[link[0]]["class_type"], nodes[link[0]]["inputs"]
        is_weak = kind == _WEIGHED and not _number(nodes, inputs.get("strength")) >= _LEAST_STRENGTH
        if kind in _PART_OF_PICTURE or is_weak:
            continue
        if kind == _PART_OF_WAY and span is None:  # a second one writes over the first
            span = (_number(nodes, inputs.get("start")), _number(nodes, inputs.get("end")))
        names = [_OF_FIRST[kind]] if kind in _OF_FIRST else list(inputs)
        opposite = link[1] == 1  # the second output of a node that takes both
        further = [
            inputs.get(name)
            for name in names
            if name.startswith(("conditioning", "negative" if opposite else "positive"))
        ]
        if any(link_in(each) for each in further):
            waiting += [(each, span) for each in further]
        else:
            spans.add(span or (0.0, 1.0))
    reached = 0.0
    for start, end in sorted(spans):
        if start <= reached:
            reached = max(reached, end)
    return reached >= 1


def _number(nodes: Nodes, value: Any) -> float:
    """A number, also where it stands in a node of its own; NaN, which is within no limits, where it is none."""
    if (link := link_in(value)) is not None and nodes[link[0]]["class_type"] in _NUMBERS:
        value = nodes[link[0]]["inputs"].get("value")
    return float(value) if isinstance(value, int | float) else math.nan
