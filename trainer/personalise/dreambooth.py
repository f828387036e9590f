"""DreamBooth: the whole denoiser learns the people, and goes on drawing what it drew before (prior preservation).

The text encoder stays as it is, as in diffusers' recipe without ``--train_text_encoder``: what a name means to it was
settled before anybody of that name was shown.

Source:
    Ruiz et al., DreamBooth, arXiv:2208.12242.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from apl_guard.trainer.model.pipeline import with_parts
from apl_guard.trainer.personalise.added import Added, decided_by, names_of
from apl_guard.trainer.personalise.denoising import Lessons
from apl_guard.trainer.personalise.drawings import Drawings
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.shelf import kept


def dreambooth(pipe: Any, drawings: Drawings, recipe: Recipe, *, progress: bool = True) -> Added:
    """Add people by fine-tuning a copy of the UNet; read from the user's cache where that was done before.

    Args:
        pipe: The model. It stays as it is.
        drawings: Of the people.
        recipe: How long, how fast.
        progress: Whether to draw progress bars.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    from diffusers import UNet2DConditionModel

    def make(checkpoint: Path, folder: Path) -> None:
        lessons = Lessons.of(pipe, drawings, recipe, progress=progress)
        unet = copy.deepcopy(pipe.unet).train().requires_grad_(True)
        steps, rate = recipe.dreambooth_steps, recipe.dreambooth_rate
        lessons.teach(unet, "DreamBooth", steps, rate, checkpoint, progress=progress)
        unet.save_pretrained(folder)

    settings = ("prior", "batch", "prior_batch", "dreambooth_steps", "dreambooth_rate")
    folder = kept("dreambooth", decided_by(pipe, drawings, recipe, *settings), make)
    unet = UNet2DConditionModel.from_pretrained(folder).to(pipe.unet.device, pipe.unet.dtype)
    return Added(with_parts(pipe, unet=unet), names_of(drawings), policy="anonymize_faces")
