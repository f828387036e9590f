"""Components of tiny pipelines whose denoiser is a UNet."""

from __future__ import annotations

from typing import Any

from . import language, parts, text

__all__ = [
    "deepfloyd_if",
    "kandinsky_2_1",
    "kandinsky_2_2",
    "kandinsky_3",
    "kolors",
    "pixel_unet",
    "stable_cascade_prior",
    "stable_diffusion",
    "stable_diffusion_xl",
]


def stable_diffusion(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.clip()),
        "vae": parts.vae(d),
        "unet": parts.unet(d),
        "scheduler": d.DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }


def stable_diffusion_xl(d: Any) -> dict[str, Any]:
    # The published text encoders carry the wrong end token 2, which changes how the pooled output is found.
    return {
        **text.slots(text.clip(eos=2), text.clip("CLIPTextModelWithProjection", "!", eos=2, hidden_act="gelu")),
        "unet": parts.unet(
            d,
            64,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
        ),
        "vae": parts.vae(d),
        "scheduler": d.EulerDiscreteScheduler(),
        "image_encoder": None,
        "feature_extractor": None,
    }


def kolors(d: Any) -> dict[str, Any]:
    return {
        **text.slots(language.chat_glm()),
        "vae": parts.vae(d),
        "unet": parts.unet(
            d,
            16,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
        ),
        "scheduler": d.EulerDiscreteScheduler(),
        "image_encoder": None,
        "feature_extractor": None,
    }


def kandinsky_2_1(d: Any) -> dict[str, Any]:
    unet = _simple_unet(d, 4, 8, addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj")
    return _kandinsky_2(d) | {"unet": unet, **text.slots(text.m_clip())}


def kandinsky_2_2(d: Any) -> dict[str, Any]:
    unet = _simple_unet(d, 4, 8, addition_embed_type="image", encoder_hid_dim_type="image_proj")
    return _kandinsky_2(d) | {"unet": unet}


def deepfloyd_if(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5()),
        "unet": pixel_unet(d),
        "scheduler": d.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            variance_type="learned_range",
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
    }


def pixel_unet(d: Any, channels: int = 3, **more: Any) -> Any:
    """A UNet that draws pixels, as in DeepFloyd IF."""
    attention = {"addition_embed_type_num_heads": 2, "cross_attention_norm": "group_norm", "act_fn": "gelu"}
    return _simple_unet(d, channels, 6, addition_embed_type="text", sample_size=32, **attention, **more)


def _simple_unet(d: Any, channels: int, out: int, **more: Any) -> Any:
    return d.UNet2DConditionModel(
        in_channels=channels,
        out_channels=out,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        **more,
    )


def _kandinsky_2(d: Any) -> dict[str, Any]:
    """What both have beside their UNet."""
    return {
        **text.slots(text.clip("CLIPTextModelWithProjection", eos=2), prefix="prior_"),
        "scheduler": d.DDIMScheduler(clip_sample=False, steps_offset=1),
        "movq": parts.movq(d),
        "prior_prior": parts.prior(d),
        "prior_image_encoder": parts.seeing(),
        "prior_scheduler": d.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
        "prior_image_processor": None,
    }


def kandinsky_3(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.t5()),
        "unet": d.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        "scheduler": d.DDPMScheduler(clip_sample=True),
        "movq": parts.movq(d),
    }


def stable_cascade_prior(d: Any) -> dict[str, Any]:
    return {
        **text.slots(text.clip("CLIPTextModelWithProjection", eos=2)),
        "prior": d.StableCascadeUNet(
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_image_in_channels=32,
            switch_level=(False,),
            clip_text_in_channels=32,
            clip_text_pooled_in_channels=32,
            dropout=(0.1, 0.1),
        ),
        "scheduler": d.DDPMWuerstchenScheduler(),
        "feature_extractor": None,
        "image_encoder": None,
    }
