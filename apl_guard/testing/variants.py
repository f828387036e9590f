"""Pipelines that share text encoders and models with a family: image-to-image, inpaint, ControlNet, PAG and so on.

Each is made from a tiny pipeline of its family, so one prefix fits all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import parts

__all__ = ["VARIANTS", "Variant", "pictures_for", "tiny_variant"]

Parts = Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """How a pipeline is made from one of its family, and what it is called with beside a prompt."""

    family: str
    inputs: tuple[str, ...] = ()
    """Arguments that are pictures."""
    parts: Parts | None = None
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


def pictures_for(name: str, seed: int = 0) -> dict[str, Any]:
    """Argument → a picture of noise, or the mask of its left half, for a variant.

    Args:
        name: A key of `VARIANTS`.
        seed: Other seeds give other pictures.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for argument in VARIANTS[name].inputs:
        if "mask" in argument:
            made[argument] = torch.zeros(1, 1, 32, 32)
            made[argument][..., :16] = 1
        elif argument == "depth_map":
            made[argument] = torch.rand(1, 32, 32, generator=generator)
        else:
            made[argument] = torch.rand(1, 3, 32, 32, generator=generator)
    return made


def _unet(**more: Any) -> Parts:
    """The UNet of the family with another shape."""
    return lambda d, pipe: {"unet": _like(pipe.unet, **more)}


def _transformer(**more: Any) -> Parts:
    """The transformer of the family with another shape."""
    return lambda d, pipe: {"transformer": _like(pipe.transformer, **more)}


def _like(model: Any, cls: Any = None, **more: Any) -> Any:
    """A model of the shape of another, but for some of it."""
    cls = cls or type(model)
    takes = inspect.signature(cls.__init__).parameters
    shape = {key: value for key, value in model.config.items() if key in takes}
    return cls(**(shape | more))


def _controlnet(d: Any, pipe: Any) -> dict[str, Any]:
    net = d.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": _awake(net)}


def _controlnet_union(d: Any, pipe: Any) -> dict[str, Any]:
    small = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    net = _like(pipe.unet, d.ControlNetUnionModel, **small, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": _awake(net)}


def _controlnet_sd3(d: Any, pipe: Any, more: int = 0) -> dict[str, Any]:
    net = _like(pipe.transformer, d.SD3ControlNetModel, extra_conditioning_channels=more)
    return {"controlnet": _awake(net)}


def _controlnet_flux(d: Any, pipe: Any) -> dict[str, Any]:
    return {"controlnet": _awake(_like(pipe.transformer, d.FluxControlNetModel))}


def _controlnet_hunyuan(d: Any, pipe: Any) -> dict[str, Any]:
    layers = pipe.transformer.config.num_layers
    net = _like(pipe.transformer, d.HunyuanDiT2DControlNetModel, transformer_num_layers=layers)
    return {"controlnet": _awake(net)}


def _awake(net: Any) -> Any:
    """A fresh ControlNet says nothing: the layers that it speaks through are zero."""
    import torch

    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    return net


def _adapter(d: Any, pipe: Any) -> dict[str, Any]:
    # Its first picture of the outlines is for a block that attends, before that makes the picture smaller.
    unet = _like(
        pipe.unet,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    channels = list(unet.config.block_out_channels)
    return {
        "unet": unet,
        "adapter": d.T2IAdapter(in_channels=3, channels=channels, num_res_blocks=1, downscale_factor=2),
    }


def _lcm(d: Any, pipe: Any) -> dict[str, Any]:
    return _unet(time_cond_proj_dim=16)(d, pipe) | {"scheduler": d.LCMScheduler()}


def _inpaint_sd3(d: Any, pipe: Any) -> dict[str, Any]:
    # This pipeline wants one of the two real widths.
    vae = parts.vae(d, 16, shift_factor=0.06, scaling_factor=1.5)
    return {"vae": vae, "transformer": _like(pipe.transformer, in_channels=16, out_channels=16)}


def _chroma_inpaint(d: Any, pipe: Any) -> dict[str, Any]:
    # It asks the configuration for an entry that no transformer of Chroma has; one of Flux has it.
    transformer = _like(pipe.transformer)
    transformer.register_to_config(guidance_embeds=False)
    return {"transformer": transformer}


def _depth(d: Any, pipe: Any) -> dict[str, Any]:
    # The depth comes as a map, so nothing estimates it.
    return _unet(in_channels=5)(d, pipe) | {"depth_estimator": None, "feature_extractor": None}


def _upscale(d: Any, pipe: Any) -> dict[str, Any]:
    return _unet(in_channels=7, num_class_embeds=100)(d, pipe) | {"low_res_scheduler": d.DDPMScheduler()}


def _latent_upscale(d: Any, pipe: Any) -> dict[str, Any]:
    unet = d.UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=160,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=32,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )
    return {"unet": unet, "scheduler": d.EulerDiscreteScheduler(prediction_type="sample")}


def _unclip(d: Any, pipe: Any) -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    from . import text

    text_encoder, tokenizer = text.clip("CLIPTextModelWithProjection", eos=2)
    unet = _unet(class_embed_type="projection", projection_class_embeddings_input_dim=64)(d, pipe)
    prior = d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)
    return unet | {
        "prior_tokenizer": tokenizer,
        "prior_text_encoder": text_encoder,
        "prior": d.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1),
        "prior_scheduler": prior,
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=32),
        "image_noising_scheduler": d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def _kandinsky_prior(d: Any, pipe: Any) -> dict[str, Any]:
    names = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    return {name: pipe.components[f"prior_{name}"] for name in names}


_IMAGE = ("image",)
_MASKED = ("image", "mask_image")
_CONTROL = ("control_image",)
_SD, _XL, _SD3, _FLUX = "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"
_SIZE = frozenset({"height", "width"})
_STRONG = {"strength": 0.9}
_PAG = {"pag_applied_layers": "mid"}
_PAG_BLOCKS = {"pag_applied_layers": "blocks.0"}
_UNION = {"control_mode": 0}
_KONTEXT = {"_auto_resize": False, "max_area": 32 * 32}

VARIANTS: dict[str, Variant] = {
    "StableDiffusionImg2ImgPipeline": Variant(_SD, _IMAGE, options=_STRONG, without=_SIZE),
    "StableDiffusionInpaintPipeline": Variant(_SD, _MASKED, options=_STRONG),
    "StableDiffusionInstructPix2PixPipeline": Variant(_SD, _IMAGE, _unet(in_channels=8), without=_SIZE),
    "StableDiffusionDepth2ImgPipeline": Variant(_SD, ("image", "depth_map"), _depth, _STRONG, _SIZE),
    "StableDiffusionUpscalePipeline": Variant(_SD, _IMAGE, _upscale, without=_SIZE),
    "StableDiffusionLatentUpscalePipeline": Variant(_SD, _IMAGE, _latent_upscale, without=_SIZE),
    "StableUnCLIPPipeline": Variant(_SD, (), _unclip, {"prior_num_inference_steps": 2}),
    "LatentConsistencyModelPipeline": Variant(_SD, (), _lcm),
    "LatentConsistencyModelImg2ImgPipeline": Variant(_SD, _IMAGE, _lcm, {"original_inference_steps": 10}, _SIZE),
    "StableDiffusionControlNetPipeline": Variant(_SD, _IMAGE, _controlnet),
    "StableDiffusionControlNetImg2ImgPipeline": Variant(_SD, ("image", "control_image"), _controlnet, _STRONG),
    "StableDiffusionControlNetInpaintPipeline": Variant(_SD, (*_MASKED, "control_image"), _controlnet, _STRONG),
    "StableDiffusionAdapterPipeline": Variant(_SD, _IMAGE, _adapter),
    "StableDiffusionPAGPipeline": Variant(_SD, settings=_PAG),
    "StableDiffusionPAGImg2ImgPipeline": Variant(_SD, _IMAGE, None, _STRONG, _SIZE, _PAG),
    "StableDiffusionPAGInpaintPipeline": Variant(_SD, _MASKED, None, _STRONG, settings=_PAG),
    "StableDiffusionControlNetPAGPipeline": Variant(_SD, _IMAGE, _controlnet, settings=_PAG),
    "StableDiffusionControlNetPAGInpaintPipeline": Variant(
        _SD, (*_MASKED, "control_image"), _controlnet, _STRONG, settings=_PAG
    ),
    "StableDiffusionXLImg2ImgPipeline": Variant(_XL, _IMAGE, options=_STRONG, without=_SIZE),
    "StableDiffusionXLInpaintPipeline": Variant(_XL, _MASKED, options=_STRONG),
    "StableDiffusionXLInstructPix2PixPipeline": Variant(_XL, _IMAGE, _unet(in_channels=8)),
    "StableDiffusionXLControlNetPipeline": Variant(_XL, _IMAGE, _controlnet),
    "StableDiffusionXLControlNetImg2ImgPipeline": Variant(_XL, ("image", "control_image"), _controlnet, _STRONG),
    "StableDiffusionXLControlNetInpaintPipeline": Variant(_XL, (*_MASKED, "control_image"), _controlnet, _STRONG),
    "StableDiffusionXLControlNetUnionPipeline": Variant(_XL, _CONTROL, _controlnet_union, _UNION),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": Variant(
        _XL, ("image", "control_image"), _controlnet_union, _STRONG | _UNION
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": Variant(
        _XL, (*_MASKED, "control_image"), _controlnet_union, _STRONG | _UNION
    ),
    "StableDiffusionXLAdapterPipeline": Variant(_XL, _IMAGE, _adapter),
    "StableDiffusionXLPAGPipeline": Variant(_XL, settings=_PAG),
    "StableDiffusionXLPAGImg2ImgPipeline": Variant(_XL, _IMAGE, None, _STRONG, _SIZE, _PAG),
    "StableDiffusionXLPAGInpaintPipeline": Variant(_XL, _MASKED, None, _STRONG, settings=_PAG),
    "StableDiffusionXLControlNetPAGPipeline": Variant(_XL, _IMAGE, _controlnet, settings=_PAG),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": Variant(
        _XL, ("image", "control_image"), _controlnet, _STRONG, settings=_PAG
    ),
    "StableDiffusion3Img2ImgPipeline": Variant(_SD3, _IMAGE, options=_STRONG),
    "StableDiffusion3InpaintPipeline": Variant(_SD3, _MASKED, _inpaint_sd3, _STRONG),
    "StableDiffusion3ControlNetPipeline": Variant(_SD3, _CONTROL, _controlnet_sd3),
    "StableDiffusion3ControlNetInpaintingPipeline": Variant(
        _SD3, ("control_image", "control_mask"), lambda d, pipe: _controlnet_sd3(d, pipe, more=1)
    ),
    "StableDiffusion3PAGPipeline": Variant(_SD3, settings=_PAG_BLOCKS),
    "StableDiffusion3PAGImg2ImgPipeline": Variant(_SD3, _IMAGE, None, _STRONG, settings=_PAG_BLOCKS),
    "FluxImg2ImgPipeline": Variant(_FLUX, _IMAGE, options=_STRONG),
    "FluxInpaintPipeline": Variant(_FLUX, _MASKED, options=_STRONG),
    "FluxControlNetPipeline": Variant(_FLUX, _CONTROL, _controlnet_flux),
    "FluxControlNetImg2ImgPipeline": Variant(_FLUX, ("image", "control_image"), _controlnet_flux, _STRONG),
    "FluxControlNetInpaintPipeline": Variant(_FLUX, (*_MASKED, "control_image"), _controlnet_flux, _STRONG),
    "FluxControlPipeline": Variant(_FLUX, _CONTROL, _transformer(in_channels=32, out_channels=16)),
    "FluxControlImg2ImgPipeline": Variant(
        _FLUX, ("image", "control_image"), _transformer(in_channels=32, out_channels=16), _STRONG
    ),
    "FluxControlInpaintPipeline": Variant(
        _FLUX, (*_MASKED, "control_image"), _transformer(in_channels=32, out_channels=16), _STRONG
    ),
    "FluxFillPipeline": Variant(_FLUX, _MASKED, _transformer(in_channels=48, out_channels=16)),
    "FluxKontextPipeline": Variant(_FLUX, _IMAGE, options=_KONTEXT),
    "FluxKontextInpaintPipeline": Variant(_FLUX, _MASKED, options=_KONTEXT | _STRONG),
    "PixArtAlphaPipeline": Variant("pixart", options={"clean_caption": False}),
    "PixArtSigmaPAGPipeline": Variant("pixart", settings=_PAG_BLOCKS),
    "HunyuanDiTControlNetPipeline": Variant("hunyuan_dit", _CONTROL, _controlnet_hunyuan),
    "HunyuanDiTPAGPipeline": Variant("hunyuan_dit", settings=_PAG_BLOCKS),
    "ChromaImg2ImgPipeline": Variant("chroma", _IMAGE, options=_STRONG),
    "ChromaInpaintPipeline": Variant("chroma", _MASKED, _chroma_inpaint, _STRONG),
    "KandinskyV22Img2ImgCombinedPipeline": Variant("kandinsky_2_2", _IMAGE, options=_STRONG),
    "KandinskyV22InpaintCombinedPipeline": Variant("kandinsky_2_2", _MASKED, _unet(in_channels=9)),
    "KandinskyV22PriorPipeline": Variant(
        "kandinsky_2_2", (), _kandinsky_prior, without=_SIZE | {"prior_num_inference_steps"}
    ),
    "KandinskyV22PriorEmb2EmbPipeline": Variant(
        "kandinsky_2_2", _IMAGE, _kandinsky_prior, _STRONG, _SIZE | {"prior_num_inference_steps"}
    ),
    "Kandinsky3Img2ImgPipeline": Variant("kandinsky_3", _IMAGE, None, _STRONG, _SIZE),
    "QwenImageImg2ImgPipeline": Variant("qwen_image", _IMAGE, options=_STRONG),
    "QwenImageInpaintPipeline": Variant("qwen_image", _MASKED, options=_STRONG),
    "ZImageImg2ImgPipeline": Variant("z_image", _IMAGE, options=_STRONG),
    "ZImageInpaintPipeline": Variant("z_image", _MASKED, options=_STRONG),
}
"""What can be made from a family's pipeline, by the name of its class."""
