"""Components of variants that the pipeline of their family has not, made from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import parts, qwen_encoders, qwens, text, unets

__all__ = [
    "Parts",
    "adapter",
    "cascade_decoder",
    "chroma_inpaint",
    "controlnet",
    "controlnet_flux",
    "controlnet_hunyuan",
    "controlnet_qwen",
    "controlnet_sana",
    "controlnet_sd3",
    "controlnet_union",
    "controlnet_z_image",
    "depth",
    "hunyuan_refiner",
    "inpaint_sd3",
    "kandinsky_prior",
    "latent_upscale",
    "layered",
    "lcm",
    "omni",
    "sana_sprint",
    "super_resolution",
    "transformer_with",
    "unclip",
    "unet_with",
    "upscale",
]

Parts = Callable[[Any, Any], dict[str, Any]]
"""Makes components, given the module `diffusers` and the pipeline of the family."""


def unet_with(**more: Any) -> Parts:
    """The UNet of the family with another shape."""
    return lambda d, pipe: {"unet": _like(pipe.unet, **more)}


def transformer_with(**more: Any) -> Parts:
    """The transformer of the family with another shape."""
    return lambda d, pipe: {"transformer": _like(pipe.transformer, **more)}


def _like(model: Any, cls: Any = None, **more: Any) -> Any:
    """A model of the shape of another, but for some of it."""
    cls = cls or type(model)
    takes = inspect.signature(cls.__init__).parameters
    shape = {key: value for key, value in model.config.items() if key in takes}
    return cls(**(shape | more))


def controlnet(d: Any, pipe: Any) -> dict[str, Any]:
    net = d.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": parts.awake(net)}


def controlnet_union(d: Any, pipe: Any) -> dict[str, Any]:
    small = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    net = _like(pipe.unet, d.ControlNetUnionModel, **small, conditioning_embedding_out_channels=(8, 8))
    return {"controlnet": parts.awake(net)}


def controlnet_sd3(d: Any, pipe: Any, more: int = 0) -> dict[str, Any]:
    net = _like(pipe.transformer, d.SD3ControlNetModel, extra_conditioning_channels=more)
    return {"controlnet": parts.awake(net)}


def controlnet_flux(d: Any, pipe: Any) -> dict[str, Any]:
    return {"controlnet": parts.awake(_like(pipe.transformer, d.FluxControlNetModel))}


def controlnet_hunyuan(d: Any, pipe: Any) -> dict[str, Any]:
    layers = pipe.transformer.config.num_layers
    net = _like(pipe.transformer, d.HunyuanDiT2DControlNetModel, transformer_num_layers=layers)
    return {"controlnet": parts.awake(net)}


def controlnet_sana(d: Any, pipe: Any) -> dict[str, Any]:
    return {"controlnet": parts.awake(_like(pipe.transformer, d.SanaControlNetModel))}


def controlnet_qwen(d: Any, pipe: Any, more: int = 0) -> dict[str, Any]:
    return {
        "controlnet": parts.awake(_like(pipe.transformer, d.QwenImageControlNetModel, extra_condition_channels=more))
    }


def controlnet_z_image(d: Any, pipe: Any) -> dict[str, Any]:
    places: Any = {"control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 33}
    net = _like(pipe.transformer, d.ZImageControlNetModel, **places)
    return {"controlnet": parts.awake(net)}


def sana_sprint(d: Any, pipe: Any) -> dict[str, Any]:
    return {"transformer": _like(pipe.transformer, guidance_embeds=True), "scheduler": d.SCMScheduler()}


def adapter(d: Any, pipe: Any) -> dict[str, Any]:
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


def lcm(d: Any, pipe: Any) -> dict[str, Any]:
    return unet_with(time_cond_proj_dim=16)(d, pipe) | {"scheduler": d.LCMScheduler()}


def inpaint_sd3(d: Any, pipe: Any) -> dict[str, Any]:
    # This pipeline wants one of the two real widths.
    vae = parts.vae(d, 16, shift_factor=0.06, scaling_factor=1.5)
    return {"vae": vae, "transformer": _like(pipe.transformer, in_channels=16, out_channels=16)}


def chroma_inpaint(d: Any, pipe: Any) -> dict[str, Any]:
    # It asks the configuration for an entry that no transformer of Chroma has; one of Flux has it.
    transformer = _like(pipe.transformer)
    transformer.register_to_config(guidance_embeds=False)
    return {"transformer": transformer}


def depth(d: Any, pipe: Any) -> dict[str, Any]:
    # The depth comes as a map, so nothing estimates it.
    return unet_with(in_channels=5)(d, pipe) | {"depth_estimator": None, "feature_extractor": None}


def upscale(d: Any, pipe: Any) -> dict[str, Any]:
    return unet_with(in_channels=7, num_class_embeds=100)(d, pipe) | {"low_res_scheduler": d.DDPMScheduler()}


def latent_upscale(d: Any, pipe: Any) -> dict[str, Any]:
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


def unclip(d: Any, pipe: Any) -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    text_encoder, tokenizer = text.clip("CLIPTextModelWithProjection", eos=2)
    unet = unet_with(class_embed_type="projection", projection_class_embeddings_input_dim=64)(d, pipe)
    prior = d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)
    return unet | {
        "prior_tokenizer": tokenizer,
        "prior_text_encoder": text_encoder,
        "prior": d.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1),
        "prior_scheduler": prior,
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=32),
        "image_noising_scheduler": d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def cascade_decoder(d: Any, pipe: Any) -> dict[str, Any]:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    block = ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
    decoder = d.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(block, [*block, "SDCascadeAttnBlock"]),
        switch_level=(False,),
        clip_text_pooled_in_channels=32,
        effnet_in_channels=4,
        dropout=(0.1, 0.1),
    )
    return {"decoder": decoder, "vqgan": PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2)}


def kandinsky_prior(d: Any, pipe: Any) -> dict[str, Any]:
    names = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    return {name: pipe.components[f"prior_{name}"] for name in names}


def super_resolution(d: Any, pipe: Any) -> dict[str, Any]:
    unet = unets.pixel_unet(d, 6, class_embed_type="timestep")
    return {"unet": unet, "image_noising_scheduler": d.DDPMScheduler(beta_schedule="squaredcos_cap_v2")}


def layered(d: Any, pipe: Any) -> dict[str, Any]:
    # It draws 640 pixels square and more, so its autoencoder makes pictures much smaller.
    return {
        "vae": qwens.qwen_vae(d, [1] * 7, 8, input_channels=4),
        "transformer": _like(
            pipe.transformer, in_channels=32, out_channels=8, use_additional_t_cond=True, use_layer3d_rope=True
        ),
        "processor": qwen_encoders.processor("Qwen2VLProcessor", pipe.tokenizer),
    }


def hunyuan_refiner(d: Any, pipe: Any) -> dict[str, Any]:
    vae = d.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    shape: Any = {"in_channels": 16, "out_channels": 8, "patch_size": (1, 1, 1), "rope_axes_dim": (4, 2, 2)}
    return {"vae": vae, "transformer": _like(pipe.transformer, **shape, guidance_embeds=True, text_embed_2_dim=None)}


def omni(d: Any, pipe: Any) -> dict[str, Any]:
    import torch
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    shape = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "siglip": Siglip2VisionModel(Siglip2VisionConfig(**shape, num_patches=4, patch_size=16)),
        "siglip_processor": Siglip2ImageProcessor(patch_size=16, max_num_patches=4),
        "transformer": qwens.z_transformer(d, siglip_feat_dim=32),
        # This pipeline gives pictures to its autoencoder in bfloat16, whatever that is in.
        "vae": _like(pipe.vae).to(torch.bfloat16),
    }
