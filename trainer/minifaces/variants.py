"""Models that others make of the base model by fine-tuning its denoiser, as people do with Stable Diffusion.

``continued`` goes on with more drawings of the same kind; ``restyled`` learns to draw in ink.  Text encoder and
autoencoder stay as they are, so a prefix of the base model fits both.
"""

from __future__ import annotations

import copy
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import StableDiffusionPipeline

from .autoencoder import encode
from .captions import caption, random_lead_in
from .dataset import draw_all
from .denoiser import train_denoiser
from .faces import Style
from .pictures import random_picture
from .shipped import save_model
from .text_encoder import encode_captions

Variant = Literal["continued", "restyled"]
STYLES: Final[dict[Variant, Style]] = {"continued": "plain", "restyled": "inked"}


@dataclass(frozen=True, slots=True)
class VariantRecipe:
    """How much of everything: minutes on one CPU core."""

    pictures: int = 3_000
    steps: int = 300
    batch: int = 32
    learning_rate: float = 4e-4

    @classmethod
    def tiny(cls) -> VariantRecipe:
        """Two steps, to see that it runs."""
        return cls(pictures=8, steps=2, batch=4)


def build_variant(
    pipe: Any,
    variant: Variant,
    folder: Path,
    recipe: VariantRecipe | None = None,
    checkpoint: Path | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Fine-tune a copy of a model's denoiser into a variant and write it as a diffusers folder, in half precision.

    Args:
        pipe: The model; it stays as it is.
        variant: Which one.
        folder: Where the variant is found when it is whole; one that is there is left as it is.
        recipe: How much of everything.
        checkpoint: Where the state of an unfinished run is kept, from which another call goes on; default: beside
            the folder.
        progress: Whether to draw a progress bar.

    Returns:
        The folder.
    """
    if folder.exists():
        return folder
    recipe, checkpoint = recipe or VariantRecipe(), checkpoint or folder.with_name(f".{folder.name}.pt")
    rng = random.Random(f"pictures of {variant}")
    pictures = [random_picture(rng) for _ in range(recipe.pictures)]
    said = [caption(picture, rng, random_lead_in(rng)) for picture in pictures]
    images = draw_all(pictures, seed=6, style=STYLES[variant])
    folder.parent.mkdir(parents=True, exist_ok=True)
    unet = train_denoiser(
        encode(pipe.vae, images),
        encode_captions(pipe.text_encoder, pipe.tokenizer, said),
        encode_captions(pipe.text_encoder, pipe.tokenizer, [""]),
        recipe.steps,
        recipe.batch,
        checkpoint,
        often=torch.ones(len(pictures)),
        start_from=copy.deepcopy(pipe.unet),
        learning_rate=recipe.learning_rate,
        progress=progress,
    )
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()} | {"unet": unet}
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(StableDiffusionPipeline(**parts, requires_safety_checker=False), temporary)
    temporary.rename(folder)
    checkpoint.unlink(missing_ok=True)
    return folder
