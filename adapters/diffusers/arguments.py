"""What each argument of a diffusers pipeline means: through which channel it carries content, or that it is
harmless. A pipeline with an argument that stands in neither table is refused as a whole, so a new release of
diffusers with a new channel fails loudly instead of leaking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.request import Channel

__all__ = [
    "HARMLESS",
    "REWRITES",
    "TEXT",
    "channel_of",
    "check_not_rewritten",
    "is_known",
    "reads_early_layers",
]

TEXT: dict[str, Channel] = {
    "prompt": Channel.PROMPT,
    "prompt_2": Channel.PROMPT_2,
    "prompt_3": Channel.PROMPT_3,
    "prompt_4": Channel.PROMPT_4,
    "negative_prompt": Channel.NEGATIVE_PROMPT,
    "negative_prompt_2": Channel.NEGATIVE_PROMPT_2,
    "negative_prompt_3": Channel.NEGATIVE_PROMPT_3,
    "negative_prompt_4": Channel.NEGATIVE_PROMPT_4,
    "system_prompt": Channel.INSTRUCTION,
    "complex_human_instruction": Channel.INSTRUCTION,
}
"""Argument → channel, where the content is text."""

_CHANNELS: Mapping[Channel, tuple[str, ...]] = {
    Channel.PROMPT_EMBEDS: (
        "attention_mask",
        "controlnet_pooled_projections",
        "pooled_prompt_embeds",
        "prompt_attention_mask",
        "prompt_attention_mask_2",
        "prompt_cu_seqlens",
        "prompt_embeds",
        "prompt_embeds_2",
        "prompt_embeds_clip",
        "prompt_embeds_llama3",
        "prompt_embeds_mask",
        "prompt_embeds_mask_2",
        "prompt_embeds_pooled",
        "prompt_embeds_qwen",
        "prompt_embeds_t5",
        "text_pad_embedding",
    ),
    Channel.NEGATIVE_PROMPT_EMBEDS: (
        "negative_attention_mask",
        "negative_pooled_prompt_embeds",
        "negative_prompt_attention_mask",
        "negative_prompt_attention_mask_2",
        "negative_prompt_cu_seqlens",
        "negative_prompt_embeds",
        "negative_prompt_embeds_2",
        "negative_prompt_embeds_clip",
        "negative_prompt_embeds_llama3",
        "negative_prompt_embeds_mask",
        "negative_prompt_embeds_mask_2",
        "negative_prompt_embeds_pooled",
        "negative_prompt_embeds_qwen",
        "negative_prompt_embeds_t5",
    ),
    Channel.IMAGE: (
        "image",
        "image_cond_latents",
        "image_latents",
        "image_reference",
        "images",
        "mask_image",
        "masked_image_latents",
        "original_image",
    ),
    Channel.CONTROL_IMAGE: ("control_image", "control_mask", "depth_map"),
    Channel.IMAGE_EMBEDS: ("image_embeddings", "image_embeds", "negative_image_embeds"),
    Channel.IP_ADAPTER: (
        "ip_adapter_image",
        "ip_adapter_image_embeds",
        "negative_ip_adapter_image",
        "negative_ip_adapter_image_embeds",
    ),
    Channel.LATENTS: ("latents", "prior_latents"),
    Channel.CALLBACK: ("callback", "callback_on_step_end", "prior_callback_on_step_end"),
    Channel.ATTENTION: ("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs"),
}
_CHANNEL_OF: dict[str, Channel] = TEXT | {name: channel for channel, names in _CHANNELS.items() for name in names}

# In these pipelines `image` gives outlines and is not painted over.
_CONTROLLED = {
    "StableDiffusionAdapterPipeline",
    "StableDiffusionControlNetPAGPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLAdapterPipeline",
    "StableDiffusionXLControlNetPAGPipeline",
    "StableDiffusionXLControlNetPipeline",
}

HARMLESS = frozenset(
    {
        # Numbers that steer the way and not the content.
        "adapter_conditioning_factor",
        "adapter_conditioning_scale",
        "aesthetic_score",
        "cfg_normalization",
        "cfg_normalize",
        "cfg_renorm_min",
        "cfg_trunc_ratio",
        "cfg_truncation",
        "clip_skip",
        "clip_value",
        "control_guidance_end",
        "control_guidance_start",
        "control_mode",
        "controlnet_conditioning_scale",
        "decoder_guidance_scale",
        "denoising_end",
        "denoising_start",
        "distilled_guidance_scale",
        "eta",
        "guess_mode",
        "guidance_rescale",
        "guidance_scale",
        "guidance_schedule",
        "image_guidance_scale",
        "intermediate_timesteps",
        "max_timesteps",
        "mu",
        "negative_aesthetic_score",
        "noise_level",
        "normalize",
        "num_inference_steps",
        "original_inference_steps",
        "pag_adaptive_scale",
        "pag_scale",
        "prior_guidance_scale",
        "prior_num_inference_steps",
        "prompt_upsampling_temperature",
        "proportional_attn",
        "return_index",
        "scaling_watershed",
        "sigmas",
        "skip_guidance_layers",
        "skip_layer_guidance_scale",
        "skip_layer_guidance_start",
        "skip_layer_guidance_stop",
        "std",
        "strength",
        "text_encoder_out_layers",
        "timesteps",
        "true_cfg_scale",
        # Chance.
        "generator",
        # Sizes and counts.
        "_auto_resize",
        "crops_coords_top_left",
        "height",
        "max_area",
        "max_sequence_length",
        "negative_crops_coords_top_left",
        "negative_original_size",
        "negative_target_size",
        "num_images_per_prompt",
        "original_size",
        "layers",
        "output_resolution",
        "padding_mask_crop",
        "reference_crop",
        "resolution",
        "target_size",
        "tokenizer_max_length",
        "use_resolution_binning",
        "width",
        # Forms of input and output, speed.
        "callback_on_step_end_tensor_inputs",
        "callback_steps",
        "clean_caption",
        "do_patching",
        "enable_cfg_renorm",
        "output",
        "output_type",
        "prior_callback_on_step_end_tensor_inputs",
        "return_dict",
        "skip_text_cleaning",
        "use_en_prompt",
        "use_kv_cache",
    }
)
"""Arguments that cannot name or show anybody."""

REWRITES: Mapping[str, bool | None] = {
    "caption_upsample_temperature": None,
    "enable_prompt_rewrite": False,
    "prompt_upsampling": False,
    "use_pe": False,
}
"""Argument with which a language model rewrites the prompt, so that no prefix can be kept in front of it, whatever the
policy says → the value with which it does not."""

# The components without which it does nothing.
_NEEDS = {"use_pe": ("pe", "pe_tokenizer")}


def channel_of(name: str, pipeline: str) -> Channel | None:
    """The channel through which an argument carries content, or None.

    Args:
        name: The argument.
        pipeline: Name of the pipeline's class.

    Example:
        >>> channel_of("image", "FluxImg2ImgPipeline").value, channel_of("height", "FluxPipeline")
        ('image', None)
    """
    if name == "image" and pipeline in _CONTROLLED:
        return Channel.CONTROL_IMAGE
    return _CHANNEL_OF.get(name)


def is_known(name: str) -> bool:
    """Whether an argument stands in one of the tables."""
    return name in _CHANNEL_OF or name in HARMLESS or name in REWRITES


def check_not_rewritten(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a call in which a language model would rewrite the prompt.

    Args:
        pipe: The pipe.
        arguments: Argument → value, defaults included.

    Raises:
        InvalidInput: It would. The message says what to pass.

    Example:
        >>> check_not_rewritten(object(), {"prompt": "a cat", "enable_prompt_rewrite": False, "use_pe": True})
    """
    for name, off in REWRITES.items():
        value = arguments.get(name)
        can = all(getattr(pipe, part, None) is not None for part in _NEEDS.get(name, ()))
        if can and value is not None and value is not False:  # anything else might say another thing the next time
            raise InvalidInput(
                "a language model would rewrite the prompt, so no prefix can be kept in front of it; "
                f"pass {name}={off}",
                where=name,
            )


MOST_SKIPPED = 2
"""How many of a text encoder's last layers may be skipped. Models are trained with one or two; below the first layer a
word is what it was before the prefix came."""

# Which layers of a text encoder are read.
_LAYERS = ("text_encoder_out_layers", "return_index")


def reads_early_layers(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a pipeline would read a text encoder at layers on which the prefix had little time to act.

    Args:
        arguments: Argument → value.
        defaults: Argument → default.

    Example:
        >>> reads_early_layers({"clip_skip": 1}, {}), reads_early_layers({"clip_skip": 11}, {})
        (False, True)
    """
    skipped = arguments.get("clip_skip")
    is_early = skipped is not None and (not isinstance(skipped, int) or not 0 <= skipped <= MOST_SKIPPED)
    given = {name: arguments[name] for name in _LAYERS if arguments.get(name) is not None}
    return is_early or any(layers != defaults.get(name) for name, layers in given.items())
