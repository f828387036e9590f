"""Components of tiny pipelines whose denoiser is a transformer, with text encoders of the kinds CLIP, T5 and BERT."""

from __future__ import annotations

from typing import Any

from . import parts, text

__all__ = [
    "aura_flow",
    "bria",
    "chroma",
    "cogview_3_plus",
    "cosmos_2",
    "flux",
    "hunyuan_dit",
    "pixart",
    "stable_diffusion_3",
]


def stable_diffusion_3(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.SD3Transformer2DModel,
        sample_size=16,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    encoders = text.slots(
        text.clip("CLIPTextModelWithProjection", eos=2),
        text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu"),
        text.t5(d_model=64),
    )
    return parts.flow_pipe(d, encoders, transformer, parts.flow_vae(d))


def flux(d: Any) -> dict[str, Any]:
    shape = {"in_channels": 16, "out_channels": None, "pooled_projection_dim": 32}
    return parts.flow_pipe(
        d, text.slots(text.clip(eos=2), text.t5()), parts.dit(d.FluxTransformer2DModel, **shape), parts.flow_vae(d)
    )


def chroma(d: Any) -> dict[str, Any]:
    approximator = {"approximator_hidden_dim": 32, "approximator_layers": 1, "approximator_num_channels": 16}
    return parts.flow_pipe(
        d,
        text.slots(text.t5()),
        parts.dit(d.ChromaTransformer2DModel, in_channels=16, out_channels=None, **approximator),
        parts.flow_vae(d),
    )


def bria(d: Any) -> dict[str, Any]:
    shape = {"in_channels": 16, "attention_head_dim": 8, "axes_dims_rope": [0, 4, 4]}
    return {
        **text.slots(text.t5()),
        "transformer": parts.dit(d.BriaTransformer2DModel, **shape),
        "scheduler": parts.flow(d),
        "vae": parts.flow_vae(d, shift_factor=0.0),
        "image_encoder": None,
        "feature_extractor": None,
    }


def pixart(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.PixArtTransformer2DModel,
        sample_size=8,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        cross_attention_dim=24,
        out_channels=8,
    )
    return {
        **text.slots(text.t5()),
        "transformer": transformer,
        "vae": parts.vae(d),
        "scheduler": d.DDIMScheduler(),
    }


def hunyuan_dit(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.HunyuanDiT2DModel,
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
    )
    return {
        **text.slots(text.bert(), text.t5(length=256)),
        "transformer": transformer,
        "vae": parts.vae(d, levels=4),
        "scheduler": d.DDPMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def aura_flow(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.AuraFlowTransformer2DModel,
        sample_size=32,
        patch_size=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return parts.flow_pipe(d, text.slots(text.t5("UMT5")), transformer, parts.vae(d))


class _Unworried:
    """In place of the checks of texts and pictures of Cosmos, which are a package of their own: nothing worries it."""

    def to(self, device: Any) -> None:
        """As the models of a pipe are placed."""

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos_2(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.CosmosTransformer3DModel,
        patch_size=(1, 2, 2),
        in_channels=16,
        out_channels=16,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # it wants torchvision
    )
    return {
        **text.slots(text.t5()),
        "transformer": parts.awake(transformer),
        "vae": d.AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "safety_checker": _Unworried(),
    }


def cogview_3_plus(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.CogView3PlusTransformer2DModel,
        patch_size=2,
        attention_head_dim=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return {
        **text.slots(text.t5()),
        "transformer": transformer,
        "vae": parts.vae(d),
        "scheduler": d.CogVideoXDDIMScheduler(),
    }
