"""Pipelines that share text encoders and models with a family: image-to-image, inpaint, ControlNet, PAG and so on.

Each is made from a tiny pipeline of its family, so one prefix fits all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import variant_parts as extra

__all__ = ["VARIANTS", "Variant", "pictures_for", "tiny_variant"]


@dataclass(frozen=True)
class Variant:
    """How a pipeline is made from one of its family, and what it is called with beside a prompt."""

    family: str
    inputs: tuple[str, ...] = ()
    """Arguments that are pictures."""
    parts: extra.Parts | None = None
    """Makes the components that the family's pipeline has not, given the module `diffusers` and that pipeline."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that it needs besides those of its family."""
    without: frozenset[str] = frozenset()
    """Arguments of its family that it does not take."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class beside its components."""


def tiny_variant(pipe: Any, name: str) -> Any:
    """Make a variant of a tiny pipeline that shares its text encoders and most of its models.

    Args:
        pipe: Made by `tiny_pipe`, of the variant's family.
        name: A key of `VARIANTS`.
    """
    import diffusers
    import torch

    variant, cls = VARIANTS[name], getattr(diffusers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = variant.parts(diffusers, pipe) if variant.parts else {}
    for part in own.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    takes = inspect.signature(cls.__init__).parameters
    shared = {key: part for key, part in pipe.components.items() if key in takes}
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
    made = cls(**(shared | own | settings | dict(variant.settings)))
    made.set_progress_bar_config(disable=True)
    return made


def pictures_for(name: str) -> dict[str, Any]:
    """Argument → a picture of noise, or the mask of its left half, for a variant.

    Args:
        name: A key of `VARIANTS`.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    made = {}
    for argument in VARIANTS[name].inputs:
        if "mask" in argument:
            made[argument] = torch.zeros(1, 1, 32, 32)
            made[argument][..., :16] = 1
        elif argument == "image_embeddings":
            made[argument] = torch.randn(1, 4, 2, 2, generator=generator)
        elif argument in ("image_embeds", "negative_image_embeds"):
            made[argument] = torch.randn(1, 32, generator=generator)
        elif name in VARIANTS_OF_PIL:
            made[argument] = _pil(name, torch.rand(64, 64, 4, generator=generator))
        elif argument == "depth_map":
            made[argument] = torch.rand(1, 32, 32, generator=generator)
        else:
            made[argument] = torch.rand(1, 3, 32, 32, generator=generator)
    return made


VARIANTS_OF_PIL = {"QwenImageLayeredPipeline": "RGBA", "ZImageOmniPipeline": "RGB"}
"""Variants that take nothing but PIL's pictures, and of which mode."""


def _pil(name: str, values: Any) -> Any:
    from PIL import Image

    return Image.fromarray((255 * values).byte().numpy()).convert(VARIANTS_OF_PIL[name])


_IMAGE = ("image",)
_MASKED = ("image", "mask_image")
_CONTROL = ("control_image",)
_SD, _XL, _SD3, _FLUX = "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"
_SIZE = frozenset({"height", "width"})
_IF, _K1, _PRIOR = "deepfloyd_if", "kandinsky_2_1", frozenset({"prior_num_inference_steps"})
_EMBEDS = ("image_embeds", "negative_image_embeds")
_STRONG = {"strength": 0.9}
_PAG = {"pag_applied_layers": "mid"}
_PAG_BLOCKS = {"pag_applied_layers": "blocks.0"}
_UNION = {"control_mode": 0}
_SANA, _KOLORS, _QWEN, _Z, _KLEIN = "sana", "kolors", "qwen_image", "z_image", "flux_2_klein"
_KONTEXT = {"_auto_resize": False, "max_area": 32 * 32}

VARIANTS: dict[str, Variant] = {
    "StableDiffusionImg2ImgPipeline": Variant(_SD, _IMAGE, options=_STRONG, without=_SIZE),
    "StableDiffusionInpaintPipeline": Variant(_SD, _MASKED, options=_STRONG),
    "StableDiffusionInstructPix2PixPipeline": Variant(_SD, _IMAGE, extra.unet_with(in_channels=8), without=_SIZE),
    "StableDiffusionDepth2ImgPipeline": Variant(_SD, ("image", "depth_map"), extra.depth, _STRONG, _SIZE),
    "StableDiffusionUpscalePipeline": Variant(_SD, _IMAGE, extra.upscale, without=_SIZE),
    "StableDiffusionLatentUpscalePipeline": Variant(_SD, _IMAGE, extra.latent_upscale, without=_SIZE),
    "StableUnCLIPPipeline": Variant(_SD, (), extra.unclip, {"prior_num_inference_steps": 2}),
    "LatentConsistencyModelPipeline": Variant(_SD, (), extra.lcm),
    "LatentConsistencyModelImg2ImgPipeline": Variant(_SD, _IMAGE, extra.lcm, {"original_inference_steps": 10}, _SIZE),
    "StableDiffusionControlNetPipeline": Variant(_SD, _IMAGE, extra.controlnet),
    "StableDiffusionControlNetImg2ImgPipeline": Variant(_SD, ("image", "control_image"), extra.controlnet, _STRONG),
    "StableDiffusionControlNetInpaintPipeline": Variant(_SD, (*_MASKED, "control_image"), extra.controlnet, _STRONG),
    "StableDiffusionAdapterPipeline": Variant(_SD, _IMAGE, extra.adapter),
    "StableDiffusionPAGPipeline": Variant(_SD, settings=_PAG),
    "StableDiffusionPAGImg2ImgPipeline": Variant(_SD, _IMAGE, None, _STRONG, _SIZE, _PAG),
    "StableDiffusionPAGInpaintPipeline": Variant(_SD, _MASKED, None, _STRONG, settings=_PAG),
    "StableDiffusionControlNetPAGPipeline": Variant(_SD, _IMAGE, extra.controlnet, settings=_PAG),
    "StableDiffusionControlNetPAGInpaintPipeline": Variant(
        _SD, (*_MASKED, "control_image"), extra.controlnet, _STRONG, settings=_PAG
    ),
    "StableDiffusionXLImg2ImgPipeline": Variant(_XL, _IMAGE, options=_STRONG, without=_SIZE),
    "StableDiffusionXLInpaintPipeline": Variant(_XL, _MASKED, options=_STRONG),
    "StableDiffusionXLInstructPix2PixPipeline": Variant(_XL, _IMAGE, extra.unet_with(in_channels=8)),
    "StableDiffusionXLControlNetPipeline": Variant(_XL, _IMAGE, extra.controlnet),
    "StableDiffusionXLControlNetImg2ImgPipeline": Variant(_XL, ("image", "control_image"), extra.controlnet, _STRONG),
    "StableDiffusionXLControlNetInpaintPipeline": Variant(_XL, (*_MASKED, "control_image"), extra.controlnet, _STRONG),
    "StableDiffusionXLControlNetUnionPipeline": Variant(_XL, _CONTROL, extra.controlnet_union, _UNION),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": Variant(
        _XL, ("image", "control_image"), extra.controlnet_union, _STRONG | _UNION
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": Variant(
        _XL, (*_MASKED, "control_image"), extra.controlnet_union, _STRONG | _UNION
    ),
    "StableDiffusionXLAdapterPipeline": Variant(_XL, _IMAGE, extra.adapter),
    "StableDiffusionXLPAGPipeline": Variant(_XL, settings=_PAG),
    "StableDiffusionXLPAGImg2ImgPipeline": Variant(_XL, _IMAGE, None, _STRONG, _SIZE, _PAG),
    "StableDiffusionXLPAGInpaintPipeline": Variant(_XL, _MASKED, None, _STRONG, settings=_PAG),
    "StableDiffusionXLControlNetPAGPipeline": Variant(_XL, _IMAGE, extra.controlnet, settings=_PAG),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": Variant(
        _XL, ("image", "control_image"), extra.controlnet, _STRONG, settings=_PAG
    ),
    "StableDiffusion3Img2ImgPipeline": Variant(_SD3, _IMAGE, options=_STRONG),
    "StableDiffusion3InpaintPipeline": Variant(_SD3, _MASKED, extra.inpaint_sd3, _STRONG),
    "StableDiffusion3ControlNetPipeline": Variant(_SD3, _CONTROL, extra.controlnet_sd3),
    "StableDiffusion3ControlNetInpaintingPipeline": Variant(
        _SD3, ("control_image", "control_mask"), lambda d, pipe: extra.controlnet_sd3(d, pipe, more=1)
    ),
    "StableDiffusion3PAGPipeline": Variant(_SD3, settings=_PAG_BLOCKS),
    "StableDiffusion3PAGImg2ImgPipeline": Variant(_SD3, _IMAGE, None, _STRONG, settings=_PAG_BLOCKS),
    "FluxImg2ImgPipeline": Variant(_FLUX, _IMAGE, options=_STRONG),
    "FluxInpaintPipeline": Variant(_FLUX, _MASKED, options=_STRONG),
    "FluxControlNetPipeline": Variant(_FLUX, _CONTROL, extra.controlnet_flux),
    "FluxControlNetImg2ImgPipeline": Variant(_FLUX, ("image", "control_image"), extra.controlnet_flux, _STRONG),
    "FluxControlNetInpaintPipeline": Variant(_FLUX, (*_MASKED, "control_image"), extra.controlnet_flux, _STRONG),
    "FluxControlPipeline": Variant(_FLUX, _CONTROL, extra.transformer_with(in_channels=32, out_channels=16)),
    "FluxControlImg2ImgPipeline": Variant(
        _FLUX, ("image", "control_image"), extra.transformer_with(in_channels=32, out_channels=16), _STRONG
    ),
    "FluxControlInpaintPipeline": Variant(
        _FLUX, (*_MASKED, "control_image"), extra.transformer_with(in_channels=32, out_channels=16), _STRONG
    ),
    "FluxFillPipeline": Variant(_FLUX, _MASKED, extra.transformer_with(in_channels=48, out_channels=16)),
    "FluxKontextPipeline": Variant(_FLUX, _IMAGE, options=_KONTEXT),
    "FluxKontextInpaintPipeline": Variant(_FLUX, _MASKED, options=_KONTEXT | _STRONG),
    "PixArtAlphaPipeline": Variant("pixart", options={"clean_caption": False}),
    "PixArtSigmaPAGPipeline": Variant("pixart", settings=_PAG_BLOCKS),
    "HunyuanDiTControlNetPipeline": Variant("hunyuan_dit", _CONTROL, extra.controlnet_hunyuan),
    "HunyuanDiTPAGPipeline": Variant("hunyuan_dit", settings=_PAG_BLOCKS),
    "ChromaImg2ImgPipeline": Variant("chroma", _IMAGE, options=_STRONG),
    "ChromaInpaintPipeline": Variant("chroma", _MASKED, extra.chroma_inpaint, _STRONG),
    "IFImg2ImgPipeline": Variant(_IF, _IMAGE, None, _STRONG, _SIZE),
    "IFInpaintingPipeline": Variant(_IF, _MASKED, None, _STRONG, _SIZE),
    "IFSuperResolutionPipeline": Variant(_IF, _IMAGE, extra.super_resolution),
    "IFImg2ImgSuperResolutionPipeline": Variant(
        _IF, ("image", "original_image"), extra.super_resolution, _STRONG, _SIZE
    ),
    "IFInpaintingSuperResolutionPipeline": Variant(
        _IF, ("image", "original_image", "mask_image"), extra.super_resolution, _STRONG, _SIZE
    ),
    "KandinskyImg2ImgCombinedPipeline": Variant(_K1, _IMAGE, None, _STRONG),
    "KandinskyInpaintCombinedPipeline": Variant(_K1, _MASKED, extra.unet_with(in_channels=9)),
    "KandinskyPipeline": Variant(_K1, _EMBEDS, without=_PRIOR),
    "KandinskyImg2ImgPipeline": Variant(_K1, (*_IMAGE, *_EMBEDS), None, _STRONG, _PRIOR),
    "KandinskyInpaintPipeline": Variant(_K1, (*_MASKED, *_EMBEDS), extra.unet_with(in_channels=9), without=_PRIOR),
    "KandinskyPriorPipeline": Variant(_K1, (), extra.kandinsky_prior, without=_SIZE | _PRIOR),
    "KandinskyV22Img2ImgCombinedPipeline": Variant("kandinsky_2_2", _IMAGE, options=_STRONG),
    "KandinskyV22InpaintCombinedPipeline": Variant("kandinsky_2_2", _MASKED, extra.unet_with(in_channels=9)),
    "KandinskyV22PriorPipeline": Variant("kandinsky_2_2", (), extra.kandinsky_prior, without=_SIZE | _PRIOR),
    "KandinskyV22PriorEmb2EmbPipeline": Variant(
        "kandinsky_2_2", _IMAGE, extra.kandinsky_prior, _STRONG, _SIZE | _PRIOR
    ),
    "StableCascadeDecoderPipeline": Variant(
        "stable_cascade_prior", ("image_embeddings",), extra.cascade_decoder, without=_SIZE
    ),
    "Kandinsky3Img2ImgPipeline": Variant("kandinsky_3", _IMAGE, None, _STRONG, _SIZE),
    "KolorsImg2ImgPipeline": Variant(_KOLORS, _IMAGE, options=_STRONG),
    "KolorsPAGPipeline": Variant(_KOLORS, settings=_PAG),
    "CogView4ControlPipeline": Variant("cogview_4", _CONTROL, extra.transformer_with(in_channels=8, out_channels=4)),
    "SanaControlNetPipeline": Variant(_SANA, _CONTROL, extra.controlnet_sana),
    "SanaPAGPipeline": Variant(_SANA, settings={"pag_applied_layers": "transformer_blocks.0"}),
    "SanaSprintPipeline": Variant(_SANA, (), extra.sana_sprint),
    "SanaSprintImg2ImgPipeline": Variant(_SANA, _IMAGE, extra.sana_sprint, _STRONG),
    "QwenImageControlNetPipeline": Variant(_QWEN, _CONTROL, extra.controlnet_qwen),
    "QwenImageControlNetInpaintPipeline": Variant(
        _QWEN, ("control_image", "control_mask"), lambda d, pipe: extra.controlnet_qwen(d, pipe, more=4)
    ),
    "ZImageControlNetPipeline": Variant(_Z, _CONTROL, extra.controlnet_z_image),
    "ZImageControlNetInpaintPipeline": Variant(_Z, (*_MASKED, "control_image"), extra.controlnet_z_image),
    "Flux2KleinInpaintPipeline": Variant(_KLEIN, _MASKED, options=_STRONG),
    "Flux2KleinKVPipeline": Variant(_KLEIN),
    "DreamLiteMobilePipeline": Variant("dreamlite"),
    "QwenImageImg2ImgPipeline": Variant("qwen_image", _IMAGE, options=_STRONG),
    "QwenImageInpaintPipeline": Variant("qwen_image", _MASKED, options=_STRONG),
    "QwenImageLayeredPipeline": Variant(_QWEN, _IMAGE, extra.layered, {"layers": 1}, _SIZE),
    "HunyuanImageRefinerPipeline": Variant("hunyuan_image", _IMAGE, extra.hunyuan_refiner),
    "ZImageOmniPipeline": Variant(_Z, _IMAGE, extra.omni),
    "ZImageImg2ImgPipeline": Variant("z_image", _IMAGE, options=_STRONG),
    "ZImageInpaintPipeline": Variant("z_image", _MASKED, options=_STRONG),
}
"""What can be made from a family's pipeline, by the name of its class."""
