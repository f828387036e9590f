"""LoRA: low-rank adapters beside the layers of the denoiser learn the people; made by peft, loaded by diffusers.

Source:
    Hu et al., LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import torch

from apl_guard.errors import ExtraMissing
from apl_guard.trainer.model.pipeline import with_parts
from apl_guard.trainer.personalise.added import Added, decided_by, names_of
from apl_guard.trainer.personalise.denoising import Lessons
from apl_guard.trainer.personalise.drawings import Drawings
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.shelf import kept

_LAYERS: Final = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut"),
)
"""All but the first and the last convolution and the time embedding, as trainers for Stable Diffusion offer it."""


def lora(pipe: Any, drawings: Drawings, recipe: Recipe, *, progress: bool = True) -> Added:
    """Add people by adapters on a copy of the UNet; read from the user's cache where that was done before.

    Args:
        pipe: The model. It stays as it is.
        drawings: Of the people.
        recipe: How long, how fast, of which rank.
        progress: Whether to draw progress bars.

    Returns:
        A pipe with the adapters loaded, not fused.

    Raises:
        StorageFailed: The cache cannot be written.
        ExtraMissing: peft is not installed.
    """
    from diffusers import StableDiffusionPipeline

    def make(checkpoint: Path, folder: Path) -> None:
        from peft import LoraConfig, get_peft_model_state_dict

        lessons = Lessons.of(pipe, drawings, recipe, progress=progress)
        unet = copy.deepcopy(pipe.unet).train().requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # so that it starts alike, whatever was learned or drawn before
            torch.manual_seed(0)
            unet.add_adapter(
                LoraConfig(
                    r=recipe.lora_rank,
                    lora_alpha=recipe.lora_rank,
                    init_lora_weights="gaussian",
                    target_modules=list(_LAYERS),
                )
            )
        lessons.teach(unet, "LoRA", recipe.lora_steps, recipe.lora_rate, checkpoint, progress=progress)
        # As peft names them: the names of older diffusers exist for attention layers only.
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))

    ExtraMissing.check("eval", "peft")
    settings = ("prior", "batch", "prior_batch", "lora_steps", "lora_rate", "lora_rank")
    folder = kept("lora", decided_by(pipe, drawings, recipe, *settings) | {"layers": _LAYERS, "start": "seed 0"}, make)
    added = with_parts(pipe, unet=copy.deepcopy(pipe.unet))
    added.load_lora_weights(folder)
    return Added(added, names_of(drawings), policy="anonymize_personalised")
