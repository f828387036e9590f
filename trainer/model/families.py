"""Which families of models there are, and which of them a pipe is of."""

from __future__ import annotations

from typing import Any

from diffusers import FluxPipeline, StableDiffusion3Pipeline
from transformers import CLIPTextModel

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.family import Family
from apl_guard.trainer.model.flux import Flux
from apl_guard.trainer.model.pipeline_code import PipelineCode
from apl_guard.trainer.model.stable_diffusion_3 import StableDiffusion3
from apl_guard.trainer.model.unets import StableDiffusion, StableDiffusionXL

__all__ = ["check_family", "family_of"]

_EXPECTED = "expected a text-to-image pipeline that the guard covers, such as StableDiffusionPipeline or FluxPipeline"


def family_of(pipe: Any, config: TrainConfig | None = None) -> Family:
    """The family of a model.

    Args:
        pipe: The model, which `open_pipe` opened.
        config: The options of a run; default: the defaults.

    Raises:
        ConfigInvalid: The options do not fit the model.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> family_of(tiny_pipe()).shape
        (4, 16, 16)
    """
    return _class_of(pipe)(pipe, config or TrainConfig())


def check_family(pipe: Any, where: str) -> None:
    """Make sure that a pipe is of a family that can be trained on.

    Raises:
        ModelInvalid: It is of none.
    """
    _class_of(pipe).check(pipe, where, _EXPECTED)


def _class_of(pipe: Any) -> type[Family]:
    if isinstance(pipe, StableDiffusion3Pipeline):
        return StableDiffusion3
    if isinstance(pipe, FluxPipeline):
        return Flux
    if not isinstance(getattr(pipe, "text_encoder", None), CLIPTextModel) or not hasattr(pipe, "unet"):
        return PipelineCode
    return StableDiffusionXL if pipe.unet.config.addition_embed_type == "text_time" else StableDiffusion
