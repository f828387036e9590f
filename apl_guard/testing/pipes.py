"""Pipelines of the true classes with random weights, tiny, one for each family of text-to-image models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import chats, dits, qwen3_vls, qwens, unets

__all__ = ["FAMILIES", "Family", "build"]


@dataclass(frozen=True)
class Family:
    """How a tiny pipeline is made and called."""

    parts: Callable[[Any], dict[str, Any]]
    """Makes the components, given the module `diffusers`."""
    pipeline: str
    """Name of the pipeline's class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments that make a call small."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class beside its components."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What is set on the pipe that was made."""
    needs: str | None = None
    """A package that the pipeline needs and diffusers does not."""


def build(family: str, seed: int = 0) -> Any:
    """Make a pipeline.

    Args:
        family: A key of `FAMILIES`.
        seed: Other seeds give other weights, so other fingerprints.
    """
    import diffusers
    import torch

    made_of = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = made_of.parts(diffusers)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    cls = getattr(diffusers, made_of.pipeline)
    if issubclass(cls, diffusers.DiffusionPipeline):
        pipe = cls(**parts, **made_of.settings)
        pipe.set_progress_bar_config(disable=True)
    else:
        blocks = copy.deepcopy(getattr(diffusers, cls.default_blocks_name)())  # those inside are the same for all
        pipe = cls(_silent(blocks))
        pipe.update_components(**parts)
    for name, value in made_of.attributes.items():
        setattr(pipe, name, value)
    return pipe


def _silent(blocks: Any) -> Any:
    """Blocks of a modular pipeline, without one that would write the prompt anew, and without progress bars."""
    blocks.sub_blocks.pop("prompt_upsampler", None)
    for block in blocks.sub_blocks.values():
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
        _silent(block)
    return blocks


_TINY = {"num_inference_steps": 2, "height": 16, "width": 16}
_SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}

FAMILIES: dict[str, Family] = {
    "stable_diffusion": Family(
        unets.stable_diffusion, "StableDiffusionPipeline", _SMALL, {"requires_safety_checker": False}
    ),
    "stable_diffusion_xl": Family(unets.stable_diffusion_xl, "StableDiffusionXLPipeline", _SMALL),
    "stable_diffusion_3": Family(
        dits.stable_diffusion_3, "StableDiffusion3Pipeline", _SMALL | {"max_sequence_length": 40}
    ),
    "flux": Family(dits.flux, "FluxPipeline", _SMALL | {"max_sequence_length": 48}),
    "pixart": Family(
        dits.pixart,
        "PixArtSigmaPipeline",
        _SMALL | {"use_resolution_binning": False, "max_sequence_length": 40, "clean_caption": False},
    ),
    "hunyuan_dit": Family(
        dits.hunyuan_dit,
        "HunyuanDiTPipeline",
        _SMALL | {"use_resolution_binning": False},
        {"requires_safety_checker": False},
    ),
    "aura_flow": Family(dits.aura_flow, "AuraFlowPipeline", _SMALL | {"max_sequence_length": 40}),
    "chroma": Family(dits.chroma, "ChromaPipeline", _SMALL | {"max_sequence_length": 40}),
    "kandinsky_2_1": Family(
        unets.kandinsky_2_1,
        "KandinskyCombinedPipeline",
        _SMALL | {"prior_num_inference_steps": 2},
    ),
    "kandinsky_2_2": Family(
        unets.kandinsky_2_2,
        "KandinskyV22CombinedPipeline",
        _SMALL | {"prior_num_inference_steps": 2},
    ),
    "kandinsky_3": Family(unets.kandinsky_3, "Kandinsky3Pipeline", _SMALL),
    "stable_cascade_prior": Family(unets.stable_cascade_prior, "StableCascadePriorPipeline", _SMALL),
    "cogview_3_plus": Family(dits.cogview_3_plus, "CogView3PlusPipeline", _TINY | {"max_sequence_length": 40}),
    "cosmos_2": Family(dits.cosmos_2, "Cosmos2TextToImagePipeline", _SMALL | {"max_sequence_length": 40}),
    "qwen_image": Family(qwens.qwen_image, "QwenImagePipeline", _SMALL),
    "qwen_image_21": Family(qwen3_vls.qwen_image_21, "QwenImage21Pipeline", _SMALL),
    "nucleus_image": Family(
        qwen3_vls.nucleus_image,
        "NucleusMoEImagePipeline",
        _SMALL | {"max_sequence_length": 304},
        attributes={"default_return_index": -2},
    ),
    "dreamlite": Family(qwen3_vls.dreamlite, "DreamLitePipeline", _SMALL | {"max_sequence_length": 300}),
    "ideogram_4": Family(
        qwen3_vls.ideogram_4,
        "Ideogram4Pipeline",
        _TINY | {"guidance_scale": 3.0, "guidance_schedule": None, "max_sequence_length": 100},
    ),
    "longcat_image": Family(
        qwens.longcat_image,
        "LongCatImagePipeline",
        _SMALL | {"enable_prompt_rewrite": False},
        attributes={"tokenizer_max_length": 250},
    ),
    "z_image": Family(qwens.z_image, "ZImagePipeline", _SMALL),
    "flux_2": Family(
        chats.flux_2, "Flux2Pipeline", _TINY | {"max_sequence_length": 260, "text_encoder_out_layers": (1, 2)}
    ),
    "flux_2_klein": Family(
        qwens.flux_2_klein, "Flux2KleinPipeline", _TINY | {"max_sequence_length": 80, "text_encoder_out_layers": (1, 2)}
    ),
    "flux_3": Family(
        qwen3_vls.flux_3, "Flux3ModularPipeline", _TINY | {"max_sequence_length": 160, "output": "images"}
    ),
    "flux_3_distilled": Family(
        qwen3_vls.flux_3_distilled,
        "Flux3DistilledModularPipeline",
        _TINY | {"max_sequence_length": 160, "output": "images"},
    ),
    "sana": Family(chats.sana, "SanaPipeline", _SMALL | {"use_resolution_binning": False, "max_sequence_length": 40}),
    "kolors": Family(unets.kolors, "KolorsPipeline", _SMALL),
    "cogview_4": Family(chats.cogview_4, "CogView4Pipeline", _SMALL | {"max_sequence_length": 60}),
    "kandinsky_5": Family(
        qwens.kandinsky_5,
        "Kandinsky5T2IPipeline",
        _SMALL | {"max_sequence_length": 250},
        attributes={"resolutions": [(32, 32)]},
    ),
    "lumina": Family(chats.lumina, "LuminaPipeline", _SMALL | {"clean_caption": False}),
    "lumina_2": Family(chats.lumina_2, "Lumina2Pipeline", _SMALL),
    "hidream": Family(chats.hidream, "HiDreamImagePipeline", _TINY | {"max_sequence_length": 40}),
    "bria": Family(dits.bria, "BriaPipeline", _SMALL | {"max_sequence_length": 40}),
    "bria_fibo": Family(chats.bria_fibo, "BriaFiboPipeline", _SMALL | {"max_sequence_length": 60}),
    "ernie_image": Family(chats.ernie_image, "ErnieImagePipeline", _TINY),
    "deepfloyd_if": Family(
        unets.deepfloyd_if, "IFPipeline", _SMALL | {"clean_caption": False}, {"requires_safety_checker": False}
    ),
    "hunyuan_image": Family(qwens.hunyuan_image, "HunyuanImagePipeline", _SMALL),
    "krea_2": Family(
        qwens.krea_2, "Krea2Pipeline", _SMALL | {"max_sequence_length": 300}, {"text_encoder_select_layers": (0, 1, 2)}
    ),
    "ovis_image": Family(qwens.ovis_image, "OvisImagePipeline", _TINY | {"max_sequence_length": 250}),
    "prx": Family(chats.prx, "PRXPipeline", _SMALL | {"use_resolution_binning": False}, needs="ftfy"),
    "prx_pixel": Family(
        qwens.prx_pixel,
        "PRXPixelPipeline",
        _TINY | {"use_resolution_binning": False},
        {"prompt_max_tokens": 40},
        needs="ftfy",
    ),
}
"""What can be made, by name."""
