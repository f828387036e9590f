"""Components of tiny pipelines whose text encoder is a Qwen, for texts or for texts and pictures."""

from __future__ import annotations

from typing import Any

from . import chats, parts, qwen_encoders, text

__all__ = [
    "flux_2_klein",
    "hunyuan_image",
    "kandinsky_5",
    "krea_2",
    "longcat_image",
    "ovis_image",
    "prx_pixel",
    "qwen_image",
    "qwen_vae",
    "z_image",
    "z_transformer",
]


def qwen_image(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.QwenImageTransformer2DModel, patch_size=2, in_channels=16, num_attention_heads=3, axes_dims_rope=(8, 4, 4)
    )
    return parts.flow_pipe(d, text.slots(qwen_encoders.qwen_vl()), transformer, qwen_vae(d, [1, 2, 2]))


def qwen_vae(d: Any, widths: list[int], channels: int = 4, **more: Any) -> Any:
    """The autoencoder of Qwen-Image; it makes pictures smaller by 2 for each width after the first."""
    times = [i > 0 for i in range(len(widths) - 1)]
    return d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=widths,
        num_res_blocks=1,
        temperal_downsample=times,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        **more,
    )


def krea_2(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.Krea2Transformer2DModel,
        in_channels=16,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=32,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
    )
    return parts.flow_pipe(d, text.slots(qwen_encoders.qwen3_vl()), transformer, qwen_vae(d, [1, 2, 2]))


def longcat_image(d: Any) -> dict[str, Any]:
    # A token of two letters, because this pipeline spells what stands in quotes letter by letter.
    text_encoder, tokenizer = qwen_encoders.qwen_vl(merges=[("o", "p")])
    return {
        **text.slots((text_encoder, tokenizer)),
        "text_processor": qwen_encoders.processor("Qwen2VLProcessor", tokenizer, chat_template=tokenizer.chat_template),
        "transformer": parts.dit(d.LongCatImageTransformer2DModel, in_channels=64),
        "vae": parts.flow_vae(d, channels=16),
        "scheduler": parts.flow(d),
    }


def z_image(d: Any) -> dict[str, Any]:
    return parts.flow_pipe(
        d, text.slots(qwen_encoders.qwen3()), z_transformer(d), parts.vae(d, 16, scaling_factor=0.36, shift_factor=0.12)
    )


def z_transformer(d: Any, **more: Any) -> Any:
    """A transformer of Z-Image, with the tokens of its padding, which are left as they were found in memory."""
    import torch

    transformer = d.ZImageTransformer2DModel(
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
        **more,
    )
    with torch.no_grad():
        for name, token in transformer.named_parameters():
            if name.endswith("pad_token"):
                token.fill_(1)
    return transformer


def flux_2_klein(d: Any) -> dict[str, Any]:
    return chats.flux_2(d, qwen_encoders.qwen3("Qwen3ForCausalLM"), guidance_embeds=False)


def ovis_image(d: Any) -> dict[str, Any]:
    return parts.flow_pipe(
        d,
        text.slots(qwen_encoders.qwen3()),
        parts.dit(d.OvisImageTransformer2DModel),
        parts.small_vae(d.AutoencoderKL, shift_factor=0.06, scaling_factor=1.5),
    )


def prx_pixel(d: Any) -> dict[str, Any]:
    transformer = d.PRXTransformer2DModel(
        patch_size=1,
        in_channels=3,
        context_in_dim=32,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[2, 2],
        bottleneck_size=8,
        resolution_embeds=True,
    )
    return {
        **text.slots(qwen_encoders.qwen3()),
        "transformer": parts.awake(transformer),
        "scheduler": parts.flow(d),
    }


def hunyuan_image(d: Any) -> dict[str, Any]:
    transformer = parts.dit(
        d.HunyuanImageTransformer2DModel,
        num_refiner_layers=1,
        attention_head_dim=8,
        patch_size=(1, 1),
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        scaling_factor=0.48,
        spatial_compression_ratio=8,
        sample_size=128,
    )
    return {
        **text.slots(qwen_encoders.qwen_vl(layers=3), text.byt5()),
        "transformer": transformer,
        "vae": vae,
        "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": d.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        "ocr_guider": d.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    }


def kandinsky_5(d: Any) -> dict[str, Any]:
    text_encoder, tokenizer = qwen_encoders.qwen_vl()
    pictures = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    processor = qwen_encoders.processor("Qwen2VLProcessor", tokenizer, **pictures)
    transformer = d.Kandinsky5Transformer3DModel(
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
    return parts.flow_pipe(
        d, text.slots((text_encoder, processor), text.clip(eos=2)), parts.awake(transformer), parts.vae(d, 16, levels=4)
    )
