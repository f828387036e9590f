"""What each field of AUTOMATIC1111's API carries. A field that is in no table is unknown, so it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from apl_guard.request import Channel

__all__ = [
    "CHANNELS",
    "HARMLESS",
    "HARMLESS_SETTINGS",
    "TEXT_FIELDS",
    "reads_early_layer",
    "turns_guidance_round",
]

TEXT_FIELDS = {
    "prompt": Channel.PROMPT,
    "hr_prompt": Channel.PROMPT,
    "negative_prompt": Channel.NEGATIVE_PROMPT,
    "hr_negative_prompt": Channel.NEGATIVE_PROMPT,
}
_NEGATIVE = [name for name, channel in TEXT_FIELDS.items() if channel == Channel.NEGATIVE_PROMPT]
# What carries content otherwise.
CHANNELS = {
    "init_images": Channel.IMAGE,
    "init_latent": Channel.LATENTS,
    "firstpass_image": Channel.IMAGE,
    "mask": Channel.IMAGE,
    "latent_mask": Channel.IMAGE,
    "image_mask": Channel.IMAGE,
    # Another model has another text encoder, for which the server drops the prefix without a word.
    "refiner_checkpoint": Channel.EXTENSION,
    "hr_checkpoint_name": Channel.EXTENSION,
    "hr_additional_modules": Channel.EXTENSION,
    # Scripts and extensions have prompts and pictures of their own.
    "script_name": Channel.EXTENSION,
    "script_args": Channel.EXTENSION,
    "alwayson_scripts": Channel.EXTENSION,
    # Fills every field that is not given, prompts too.
    "infotext": Channel.EXTENSION,
}
HARMLESS = {
    "batch_size", "cfg_scale", "denoising_strength", "disable_extra_networks", "distilled_cfg_scale",
    "do_not_save_grid", "do_not_save_samples", "enable_hr", "eta", "firstphase_height", "firstphase_width",
    "force_task_id", "height", "hr_cfg", "hr_distilled_cfg", "hr_resize_x", "hr_resize_y", "hr_sampler_name",
    "hr_scale", "hr_scheduler", "hr_second_pass_steps", "hr_upscaler", "image_cfg_scale", "include_init_images",
    "initial_noise_multiplier", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_fill",
    "inpainting_mask_invert", "mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "n_iter",
    "override_settings", "override_settings_restore_afterwards", "refiner_switch_at", "resize_mode",
    "restore_faces", "s_churn", "s_min_uncond", "s_noise", "s_tmax", "s_tmin", "sampler_index", "sampler_name",
    "save_images", "scheduler", "seed", "seed_resize_from_h", "seed_resize_from_w", "send_images", "steps",
    "styles", "subseed", "subseed_strength", "tiling", "width",
}  # fmt: skip
# Counted from the end, the layer at which the text encoder is read; 1 is the last. Those before the second have seen
# less of the prefix than it was trained with.
_LAST_LAYERS, _MOST_LAST_LAYERS = "CLIP_stop_at_last_layers", 2
HARMLESS_SETTINGS = {_LAST_LAYERS, "eta_noise_seed_delta", "jpeg_quality", "samples_format"}
_GUIDANCE = ("cfg_scale", "hr_cfg", "distilled_cfg_scale", "hr_distilled_cfg", "image_cfg_scale")
_DEFAULT_GUIDANCE = 7.0
# Samplers after the paper CFG++: AUTOMATIC1111 divides the guidance scale by 12.5 for them.
_DIVIDING = re.compile(r"cfg[\s_-]*(?:\+\+|pp)", re.IGNORECASE)
_LEAST_DIVIDED = 12.5


def turns_guidance_round(fields: Mapping[str, Any]) -> bool:
    """Whether fields draw what the negative prompt says: guidance below 1, also where a sampler divides it, or, with a
    checkpoint that edits pictures, more of it by the picture than by the prompt.

    Example:
        >>> turns_guidance_round({"cfg_scale": 5}), turns_guidance_round({"cfg_scale": 5, "image_cfg_scale": 6})
        (False, True)
    """
    given = {name: fields[name] for name in _GUIDANCE if fields.get(name) is not None}
    if not all(isinstance(scale, int | float) and scale >= 1 for scale in given.values()):
        return True
    samplers = [str(fields.get(name)) for name in ("sampler_name", "sampler_index", "hr_sampler_name")]
    if any(fields.get(name) for name in _NEGATIVE) and any(map(_DIVIDING.search, samplers)):
        scales = {"cfg_scale": _DEFAULT_GUIDANCE} | given
        if any(scales[name] < _LEAST_DIVIDED for name in ("cfg_scale", "hr_cfg") if name in scales):
            return True
    return bool(given.get("image_cfg_scale", 1) > given.get("cfg_scale", _DEFAULT_GUIDANCE))


def reads_early_layer(settings: Mapping[str, Any]) -> bool:
    """Whether settings read the text encoder at a layer on which the prefix had little time to act.

    Example:
        >>> reads_early_layer({"CLIP_stop_at_last_layers": 2}), reads_early_layer({"CLIP_stop_at_last_layers": 12})
        (False, True)
    """
    return settings.get(_LAST_LAYERS, 1) not in range(1, _MOST_LAST_LAYERS + 1)
