"""Pipelines of the true classes with random weights, tiny, one for each family of text-to-image models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import text

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
    pipe = getattr(diffusers, made_of.pipeline)(**parts, **made_of.settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _unet(d: Any, width: int = 32, **more: Any) -> Any:
    shape = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return d.UNet2DConditionModel(**(shape | more))


def _vae(d: Any, channels: int = 4, levels: int = 2, **more: Any) -> Any:
    return d.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    )


def _flow(d: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler()


def _stable_diffusion(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.clip()
    return {
        "vae": _vae(d),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": _unet(d),
        "scheduler": d.DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _stable_diffusion_xl(d: Any) -> dict[str, Any]:
    # The published text encoders carry the wrong end token 2, which changes how the pooled output is found.
    text_encoder, tokenizer = text.clip(eos=2)
    text_encoder_2, tokenizer_2 = text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu")
    unet = _unet(
        d,
        64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
    )
    return {
        "vae": _vae(d),
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "unet": unet,
        "scheduler": d.EulerDiscreteScheduler(),
        "image_encoder": None,
        "feature_extractor": None,
    }


def _stable_diffusion_3(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.clip("CLIPTextModelWithProjection", eos=2)
    text_encoder_2, tokenizer_2 = text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu")
    text_encoder_3, tokenizer_3 = text.t5(d_model=64)
    transformer = d.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return {
        "transformer": transformer,
        "scheduler": _flow(d),
        "vae": _vae(d, shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": text_encoder_3,
        "tokenizer_3": tokenizer_3,
    }


def _flux(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.clip(eos=2)
    text_encoder_2, tokenizer_2 = text.t5()
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return {
        "scheduler": _flow(d),
        "vae": _vae(d, shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "transformer": transformer,
    }


def _pixart(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.t5()
    transformer = d.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": _vae(d),
        "transformer": transformer,
        "scheduler": d.DDIMScheduler(),
    }


def _hunyuan_dit(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.bert()
    text_encoder_2, tokenizer_2 = text.t5(length=256)
    transformer = d.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return {
        "transformer": transformer,
        "vae": _vae(d, levels=4),
        "scheduler": d.DDPMScheduler(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "safety_checker": None,
        "feature_extractor": None,
    }


def _aura_flow(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.t5("UMT5")
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return {
        "scheduler": _flow(d),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": transformer,
        "vae": _vae(d),
    }


def _chroma(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.t5()
    transformer = d.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return {
        "scheduler": _flow(d),
        "vae": _vae(d, shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": transformer,
    }


def _kandinsky_2_2(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = text.clip("CLIPTextModelWithProjection", eos=2)
    prior = d.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    prior.clip_std.data.fill_(1)
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    seeing = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        patch_size=16,
    )
    unet = d.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = d.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return {
        "unet": unet,
        "scheduler": d.DDIMScheduler(clip_sample=False, steps_offset=1),
        "movq": movq,
        "prior_prior": prior,
        "prior_image_encoder": CLIPVisionModelWithProjection(seeing),
        "prior_text_encoder": text_encoder,
        "prior_tokenizer": tokenizer,
        "prior_scheduler": d.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
        "prior_image_processor": None,
    }


_SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}

FAMILIES: dict[str, Family] = {
    "stable_diffusion": Family(
        _stable_diffusion, "StableDiffusionPipeline", _SMALL, {"requires_safety_checker": False}
    ),
    "stable_diffusion_xl": Family(_stable_diffusion_xl, "StableDiffusionXLPipeline", _SMALL),
    "stable_diffusion_3": Family(_stable_diffusion_3, "StableDiffusion3Pipeline", _SMALL | {"max_sequence_length": 40}),
    "flux": Family(_flux, "FluxPipeline", _SMALL | {"max_sequence_length": 48}),
    "pixart": Family(
        _pixart,
        "PixArtSigmaPipeline",
        _SMALL | {"use_resolution_binning": False, "max_sequence_length": 40, "clean_caption": False},
    ),
    "hunyuan_dit": Family(
        _hunyuan_dit,
        "HunyuanDiTPipeline",
        _SMALL | {"use_resolution_binning": False},
        {"requires_safety_checker": False},
    ),
    "aura_flow": Family(_aura_flow, "AuraFlowPipeline", _SMALL | {"max_sequence_length": 40}),
    "chroma": Family(_chroma, "ChromaPipeline", _SMALL | {"max_sequence_length": 40}),
    "kandinsky_2_2": Family(
        _kandinsky_2_2,
        "KandinskyV22CombinedPipeline",
        {"num_inference_steps": 2, "prior_num_inference_steps": 2, "height": 32, "width": 32},
    ),
}
"""What can be made, by name."""
