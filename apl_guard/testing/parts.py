"""What tiny pipelines are made of beside their text encoders."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["awake", "dit", "flow", "flow_vae", "movq", "prior", "seeing", "small_vae", "unet", "vae"]


def awake(model: Any) -> Any:
    """A fresh model whose last layers are zero says nothing; here they are not."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
    return model


_ONE_LAYER = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


def dit(cls: Any, **more: Any) -> Any:
    """A transformer that denoises, of one layer for prompt embeds 32 wide, as far as its class takes such arguments."""
    takes = inspect.signature(cls.__init__).parameters
    return cls(**({name: value for name, value in _ONE_LAYER.items() if name in takes} | more))


def unet(d: Any, width: int = 32, **more: Any) -> Any:
    """A UNet for prompt embeds of some width."""
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


def vae(d: Any, channels: int = 4, levels: int = 2, **more: Any) -> Any:
    """An autoencoder that makes pictures smaller by 2 for each level after the first."""
    return d.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    )


def flow_vae(d: Any, **more: Any) -> Any:
    """The autoencoder of pipelines that learn a flow."""
    return vae(d, **({"shift_factor": 0.06, "scaling_factor": 1.5} | more))


def small_vae(cls: Any, **more: Any) -> Any:
    """An autoencoder that makes pictures no smaller, with one channel of latents."""
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (4,),
        "layers_per_block": 1,
        "latent_channels": 1,
        "norm_num_groups": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return cls(**(shape | more))


def movq(d: Any) -> Any:
    """The autoencoder of Kandinsky."""
    return d.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def prior(d: Any) -> Any:
    """The model of Kandinsky 2 that makes picture embeds of prompt embeds."""
    made = d.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    made.clip_std.data.fill_(1)
    return made


def seeing() -> Any:
    """A CLIP vision model."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        patch_size=16,
    )
    return CLIPVisionModelWithProjection(config)


def flow(d: Any) -> Any:
    """The scheduler of pipelines that learn a flow."""
    return d.FlowMatchEulerDiscreteScheduler()


def flow_pipe(d: Any, encoders: dict[str, Any], transformer: Any, autoencoder: Any) -> dict[str, Any]:
    """The components of a pipeline whose transformer learned a flow."""
    return {**encoders, "transformer": transformer, "vae": autoencoder, "scheduler": flow(d)}
