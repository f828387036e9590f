"""Components of tiny pipelines whose text encoder is a language model."""

from __future__ import annotations

from typing import Any

from . import language, parts, text

__all__ = [
    "cogview_4",
    "flux_2",
    "flux_2_klein",
    "hidream",
    "kandinsky_5",
    "lumina",
    "lumina_2",
    "qwen_image",
    "sana",
    "z_image",
]


def qwen_image(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.qwen_vl()),
        "transformer": d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=32,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        "vae": d.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "scheduler": parts.flow(d),
    }


def z_image(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.qwen3()),
        "transformer": _filled(
            d.ZImageTransformer2DModel(
                all_patch_size=(2,),
                all_f_patch_size=(1,),
                in_channels=16,
                dim=32,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=32,
                axes_dims=[8, 4, 4],
                axes_lens=[1024, 32, 32],
            )
        ),
        "vae": parts.vae(d, 16, scaling_factor=0.36, shift_factor=0.12),
        "scheduler": parts.flow(d),
    }


def _filled(transformer: Any) -> Any:
    """With the tokens of its padding, which are left as they were found in memory."""
    import torch

    with torch.no_grad():
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    return transformer


def flux_2(d: Any) -> dict[str, Any]:
    return _flux_2(d, language.mistral3(), guidance_embeds=True)


def flux_2_klein(d: Any) -> dict[str, Any]:
    return _flux_2(d, language.qwen3("Qwen3ForCausalLM"), guidance_embeds=False)


def _flux_2(d: Any, encoder: Any, **config: Any) -> dict[str, Any]:
    return {
        **text.slots(encoder),
        "transformer": d.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            timestep_guidance_channels=32,
            axes_dims_rope=[4, 4, 4, 4],
            **config,
        ),
        "vae": d.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(4,),
            layers_per_block=1,
            latent_channels=1,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "scheduler": parts.flow(d),
    }


def sana(d: Any) -> dict[str, Any]:
    blocks = ("ResBlock", "EfficientViTBlock")
    return {
        **text.slots(language.gemma()),
        "transformer": d.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=32,
        ),
        "vae": d.AutoencoderDC(
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
        ),
        "scheduler": parts.flow(d),
    }


def lumina(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.gemma("Gemma", "GemmaModel")),
        "transformer": d.LuminaNextDiT2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            norm_eps=1e-5,
            cross_attention_dim=8,
        ),
        "vae": parts.vae(d, levels=4),
        "scheduler": parts.flow(d),
    }


def lumina_2(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.gemma()),
        "transformer": d.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=8,
            num_layers=1,
            num_attention_heads=1,
            num_kv_heads=1,
            multiple_of=16,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            axes_lens=[1024, 64, 64],
            cap_feat_dim=8,
        ),
        "vae": parts.vae(d, shift_factor=0.06, scaling_factor=1.5),
        "scheduler": parts.flow(d),
    }


def hidream(d: Any) -> dict[str, Any]:
    return {
        **text.slots(
            text.clip("CLIPTextModelWithProjection", eos=2),
            text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu"),
            text.t5(),
            language.llama(),
        ),
        "transformer": d.HiDreamImageTransformer2DModel(
            patch_size=8,  # it draws 128 pixels square, whatever it is asked
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=64,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(128, 128),
            llama_layers=(0, 1),
        ),
        "scheduler": parts.flow(d),
        "vae": parts.vae(d, levels=1, scaling_factor=0.36, shift_factor=0.12),
    }


def cogview_4(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.glm()),
        "transformer": d.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        ),
        "vae": parts.vae(d, levels=2),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    }


def kandinsky_5(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = language.qwen_vl()
    pictures = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    processor = language.processor("Qwen2VLProcessor", tokenizer, **pictures)
    return {
        **text.slots((text_encoder, processor), text.clip(eos=2)),
        "transformer": parts.awake(
            d.Kandinsky5Transformer3DModel(
                in_visual_dim=16,
                out_visual_dim=16,
                in_text_dim=32,
                in_text_dim2=32,
                time_dim=16,
                model_dim=16,
                ff_dim=16,
                num_text_blocks=1,
                num_visual_blocks=1,
                axes_dims=(2, 2, 4),
                patch_size=(1, 2, 2),
            )
        ),
        "vae": parts.vae(d, 16, levels=4),
        "scheduler": parts.flow(d),
    }
