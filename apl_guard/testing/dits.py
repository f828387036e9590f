"""Components of tiny pipelines whose denoiser is a transformer, with text encoders of the kinds CLIP, T5 and BERT."""

from __future__ import annotations

from typing import Any

from . import parts, text

__all__ = ["aura_flow", "chroma", "cogview_3_plus", "flux", "hunyuan_dit", "pixart", "stable_diffusion_3"]


def stable_diffusion_3(d: Any) -> dict[str, Any]:
    return {
        **text.slots(
            text.clip("CLIPTextModelWithProjection", eos=2),
            text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu"),
            text.t5(d_model=64),
        ),
        "transformer": d.SD3Transformer2DModel(
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
        ),
        "scheduler": parts.flow(d),
        "vae": parts.vae(d, shift_factor=0.06, scaling_factor=1.5),
    }


def flux(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.clip(eos=2), text.t5()),
        "transformer": d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": parts.flow(d),
        "vae": parts.vae(d, shift_factor=0.06, scaling_factor=1.5),
    }


def pixart(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5()),
        "transformer": d.PixArtTransformer2DModel(
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
        ),
        "vae": parts.vae(d),
        "scheduler": d.DDIMScheduler(),
    }


def hunyuan_dit(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.bert(), text.t5(length=256)),
        "transformer": d.HunyuanDiT2DModel(
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
        ),
        "vae": parts.vae(d, levels=4),
        "scheduler": d.DDPMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def aura_flow(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5("UMT5")),
        "transformer": d.AuraFlowTransformer2DModel(
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
        ),
        "scheduler": parts.flow(d),
        "vae": parts.vae(d),
    }


def chroma(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5()),
        "transformer": d.ChromaTransformer2DModel(
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
        ),
        "scheduler": parts.flow(d),
        "vae": parts.vae(d, shift_factor=0.06, scaling_factor=1.5),
    }


def cogview_3_plus(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5()),
        "transformer": d.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        "vae": parts.vae(d),
        "scheduler": d.CogVideoXDDIMScheduler(),
    }
