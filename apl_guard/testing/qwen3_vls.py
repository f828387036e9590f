"""Components of tiny pipelines whose text encoder is a Qwen3-VL."""

from __future__ import annotations

from typing import Any

from . import parts, qwen_encoders, qwens, text

__all__ = ["dreamlite", "flux_3", "flux_3_distilled", "ideogram_4", "nucleus_image", "qwen_image_21"]


def qwen_image_21(d: Any) -> dict[str, Any]:
    transformer = d.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = d.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return parts.flow_pipe(d, _conditional(), parts.awake(transformer), vae)


def nucleus_image(d: Any) -> dict[str, Any]:
    import torch

    transformer = d.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 8),
        dense_moe_strategy="leave_first_block_dense",
        mlp_ratio=8.0,  # a smaller layer has no width at all
        num_experts=2,
        capacity_factors=1.0,
        moe_intermediate_dim=8,
    )
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.ndim == 3:  # the experts, which are left as they were found in memory
                weight.normal_(std=0.1)
    return parts.flow_pipe(d, _conditional(), parts.awake(transformer), qwens.qwen_vae(d, [1, 2, 2]))


def dreamlite(d: Any) -> dict[str, Any]:
    unet = d.DreamLiteUNetModel(
        sample_size=8,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        encoder_hid_dim=text.WIDTH,
        encoder_hid_dim_type="text_proj",
    )
    blocks: Any = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    widths: Any = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    encoders = _conditional()
    return {
        **encoders,
        "tokenizer": encoders["processor"].tokenizer,
        "unet": parts.awake(unet),
        "vae": d.AutoencoderTiny(**widths, **blocks),
        "scheduler": parts.flow(d),
    }


def ideogram_4(d: Any) -> dict[str, Any]:
    shape: Any = {
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 13 * text.WIDTH,
        "mrope_section": (4, 2, 2),
    }
    # The pipeline reads 13 layers, the last of which is the 36th.
    return {
        **text.slots(qwen_encoders.qwen3_vl(layers=36)),
        "transformer": parts.awake(d.Ideogram4Transformer2DModel(**shape)),
        "unconditional_transformer": parts.awake(d.Ideogram4Transformer2DModel(**shape)),
        "vae": parts.small_vae(d.AutoencoderKLFlux2),
        "scheduler": parts.flow(d),
    }


def flux_3(d: Any, *, distilled: bool = False) -> dict[str, Any]:
    # Its blocks read eight layers, the last of which is the 32nd.
    encoders = _conditional(layers=33)
    transformer = parts.dit(
        d.Flux3Transformer2DModel,
        in_channels=4,
        cond_in_channels=4,
        joint_attention_dim=8 * text.WIDTH,
        timestep_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=distilled,
    )
    return {
        "text_encoder": encoders["text_encoder"],
        "tokenizer": encoders["processor"],
        "transformer": parts.awake(transformer),
        "vae": parts.small_vae(d.AutoencoderKLFlux2),
    }


def flux_3_distilled(d: Any) -> dict[str, Any]:
    return flux_3(d, distilled=True)


def _conditional(layers: int = 3) -> dict[str, Any]:
    """A Qwen3-VL that can go on with a text, and its processor."""
    text_encoder, tokenizer = qwen_encoders.qwen3_vl("Qwen3VLForConditionalGeneration", layers)
    pictures = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in pictures.items()}
    template = {"chat_template": tokenizer.chat_template}
    processor = qwen_encoders.processor("Qwen3VLProcessor", tokenizer, **pictures, **ids, **template)
    return {"text_encoder": text_encoder, "processor": processor}
