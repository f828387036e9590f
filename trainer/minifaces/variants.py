"""Models that others make of the base model by fine-tuning its denoiser, as people do with Stable Diffusion.

``continued`` goes on with more drawings of the same kind; ``restyled`` learns to draw in ink.  Text encoder and
autoencoder stay as they are, so a prefix of the base model fits both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import StableDiffusionPipeline

from apl_guard.errors import InvalidInput
from apl_guard.storage import make_folder
from apl_guard.trainer.model.pipeline import model_digest

from .autoencoder import encode
from .captions import caption, random_lead_in
from .dataset import draw_all
from .denoiser import train_denoiser
from .faces import Style
from .pictures import random_picture
from .shipped import save_model
from .text_encoder import encode_captions
from .whole import whole

Variant = Literal["continued", "restyled"]
_NOTE: Final = "made_by.json"
"""What a variant was made from, in its folder."""
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


def fine_tuned(
    pipe: Any, variant: Variant, recipe: VariantRecipe, checkpoint: Path, *, progress: bool
) -> StableDiffusionPipeline:
    """A copy of a model whose denoiser was trained on into a variant.

    Args:
        pipe: The model; it stays as it is.
        variant: Which one.
        recipe: How much of everything.
        checkpoint: Where the state of an unfinished run is kept, from which another call goes on.
        progress: Whether to draw a progress bar.

    Raises:
        InvalidInput: The state of the run that was killed is damaged.
        StorageFailed: The state cannot be written.
    """
    rng = random.Random(f"pictures of {variant}")
    pictures = [random_picture(rng) for _ in range(recipe.pictures)]
    said = [caption(picture, rng, random_lead_in(rng)) for picture in pictures]
    unet = train_denoiser(
        encode(pipe.vae, draw_all(pictures, seed=6, style=STYLES[variant])),
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
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def build_variant(pipe: Any, variant: Variant, folder: Path, recipe: VariantRecipe | None = None) -> Path:
    """Write a variant of a model as a diffusers folder, in half precision; a build that was stopped goes on.

    Args:
        pipe: The model; it stays as it is.
        variant: Which one.
        folder: Where the variant is found when it is whole; one that is there is left as it is, if it was made in
            the same way.
        recipe: How much of everything.

    Returns:
        The folder.

    Raises:
        InvalidInput: The folder holds a variant by another recipe or of another model.
        StorageFailed: Something cannot be written.
    """
    recipe = recipe or VariantRecipe()
    made_by = {"model": model_digest(pipe), "recipe": asdict(recipe)}
    if folder.exists():
        _check_made_by(folder, made_by)
        return folder
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:8]
    checkpoint = make_folder(folder.parent) / f".{folder.name}.{digest}.pt"
    made = fine_tuned(pipe, variant, recipe, checkpoint, progress=True)
    with whole(folder) as partial:
        save_model(made, partial)
        (partial / _NOTE).write_text(json.dumps(made_by) + "\n")
    checkpoint.unlink(missing_ok=True)
    return folder


def _check_made_by(folder: Path, made_by: dict[str, Any]) -> None:
    """One made in another way, such as with `--tiny`, is not what is asked for. Without a note there is nothing to say.

    Raises:
        InvalidInput: It was.
    """
    note = folder / _NOTE
    if note.is_file() and json.loads(note.read_text()) != made_by:
        msg = "holds a variant by another recipe or of another model; choose another folder, or delete this one"
        raise InvalidInput(msg, where=folder)
