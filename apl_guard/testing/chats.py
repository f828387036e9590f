"""Components of tiny pipelines whose text encoder is a language model other than Qwen."""

from __future__ import annotations

from typing import Any

from . import language, parts, text

__all__ = ["bria_fibo", "cogview_4", "ernie_image", "flux_2", "hidream", "lumina", "lumina_2", "prx", "sana"]

_ROPES = {"axes_dim_rope": [4, 2, 2], "axes_lens": [1024, 64, 64]}


def flux_2(d: Any, encoder: Any = None, *, guidance_embeds: bool = True) -> dict[str, Any]:
    transformer = parts.dit(
        d.Flux2Transformer2DModel,
        out_channels=None,
        joint_attention_dim=64,
        timestep_guidance_channels=32,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guidance_embeds,
    )
    return parts.flow_pipe(
        d, text.slots(encoder or language.mistral3()), transformer, parts.small_vae(d.AutoencoderKLFlux2)
    )


def ernie_image(d: Any) -> dict[str, Any]:
    transformer = d.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=text.WIDTH,
        rope_axes_dim=(8, 4, 4),
    )
    return parts.flow_pipe(
        d, text.slots(language.ministral3()), parts.awake(transformer), parts.small_vae(d.AutoencoderKLFlux2)
    )


def bria_fibo(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.BriaFiboTransformer2DModel,
        in_channels=16,
        attention_head_dim=8,
        joint_attention_dim=64,
        text_encoder_dim=32,
        axes_dims_rope=[0, 4, 4],
    )
    return parts.flow_pipe(
        d, text.slots(language.smol()), transformer, d.AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1)
    )


def prx(d: Any) -> dict[str, Any]:
    shape = {"patch_size": 1, "context_in_dim": 8, "hidden_size": 8, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1}
    return parts.flow_pipe(
        d,
        text.slots(language.t5_gemma()),
        parts.awake(d.PRXTransformer2DModel(in_channels=4, axes_dim=[2, 2], **shape)),
        parts.vae(d, shift_factor=0.0, scaling_factor=1.0),
    )


def sana(d: Any) -> dict[str, Any]:
    blocks = ("ResBlock", "EfficientViTBlock")
    transformer = parts.dit(
        d.SanaTransformer2DModel,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
    )
    vae = d.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return parts.flow_pipe(d, text.slots(language.gemma()), transformer, vae)


def lumina(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.LuminaNextDiT2DModel,
        sample_size=4,
        patch_size=2,
        hidden_size=16,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        cross_attention_dim=8,
    )
    return parts.flow_pipe(d, text.slots(language.gemma("Gemma", "GemmaModel")), transformer, parts.vae(d, levels=4))


def lumina_2(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.Lumina2Transformer2DModel,
        sample_size=4,
        patch_size=2,
        out_channels=None,
        hidden_size=8,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        cap_feat_dim=8,
        **_ROPES,
    )
    return parts.flow_pipe(d, text.slots(language.gemma()), transformer, parts.flow_vae(d))


def hidream(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.HiDreamImageTransformer2DModel,
        patch_size=8,  # it draws 128 pixels square, whatever it is asked
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(128, 128),
        llama_layers=(0, 1),
    )
    encoders = text.slots(
        text.clip("CLIPTextModelWithProjection", eos=2),
        text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu"),
        text.t5(),
        language.llama(),
    )
    return parts.flow_pipe(d, encoders, transformer, parts.vae(d, levels=1, scaling_factor=0.36, shift_factor=0.12))


def cogview_4(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.CogView4Transformer2DModel,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    )
    shift = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "use_dynamic_shifting": True}
    return {
        **text.slots(language.glm()),
        "transformer": transformer,
        "vae": parts.vae(d, levels=2),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(**shift, time_shift_type="linear"),
    }
