"""Which pipelines training asks through their own code, and how each draws small."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from apl_guard import Policy
from apl_guard.testing import FAMILIES
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.pipeline_code import PipelineCode

WRITTEN_OUT = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux")
NO_GRADIENT = ("longcat_image",)
NO_DENOISER = ("ernie_image", "kandinsky_2_1", "kandinsky_2_2", "stable_cascade_prior", "deepfloyd_if")
NO_FLOW = ("cosmos_2",)
_NOT_ASKED = {*WRITTEN_OUT, *NO_GRADIENT, *NO_DENOISER, *NO_FLOW}
# Older versions of diffusers have fewer of them.
OTHERS = tuple(
    name for name, family in FAMILIES.items() if name not in _NOT_ASKED and hasattr(diffusers, family.pipeline)
)

# What the options of a run say, and what the pipeline has to be asked rightly without.
_OF_CONFIG = {"height", "width", "num_inference_steps", "guidance_scale", "guidance_schedule", "output"}


def small_config(name: str, **options: Any) -> TrainConfig:
    """The options of a run that draws as small as the guard's tests do."""
    own = FAMILIES[name].options
    length = own.get("max_sequence_length", 0)
    length = length if 0 < length <= 512 else None
    return TrainConfig(
        **{"precision": "float32", "picture_size": own.get("height"), "max_sequence_length": length, **options}
    )


def small_class(name: str) -> type[PipelineCode]:
    """The family, with those arguments of a small call that are no options of training."""
    more = {option: value for option, value in FAMILIES[name].options.items() if option not in _OF_CONFIG}

    class Small(PipelineCode):
        @property
        def call(self) -> dict[str, Any]:
            return {**super().call, **more}

    return Small


def small(pipe: Any, name: str, **options: Any) -> PipelineCode:
    """A pipe of the family, whose weights do not learn."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return small_class(name)(pipe, small_config(name, **options))


def permissive(slots: tuple[str, ...]) -> Policy:
    """A prefix for these slots suffices, and small calls may say which layers are read."""
    rules = [
        {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
        {"id": "attention", "when": {"channels": ["attention"]}, "then": {"action": "unsafe_allow"}},
    ]
    spec = {"rules": rules, "prefix": {"slots": list(slots)}}
    return Policy.model_validate(
        {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "small", "version": 1}, "spec": spec}
    )
