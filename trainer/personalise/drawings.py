"""What somebody brings along who adds people to a model: a handful of drawings of each, and a caption or two for each.

Letters: n pictures, m captions, L tokens in a row, D width of the prompt embeds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.generation import self_generate
from apl_guard.trainer.data.seeds import ADDED_PEOPLE
from apl_guard.trainer.minifaces import Person, generic_prompts
from apl_guard.trainer.minifaces.captions import caption
from apl_guard.trainer.minifaces.dataset import Images, draw_all
from apl_guard.trainer.minifaces.pictures import of_person
from apl_guard.trainer.model.prompt_embeds import embeds_of

_SEED: Final = 40
"""Of drawings, captions and the model's own pictures; evaluation takes its seeds from other texts."""
_CAPTIONS: Final = 3
"""For each drawing: the same picture, said in other words and with other parts of the scene left out."""
BATCH: Final = 32
"""How many texts are encoded, or drawn, at a time."""


@dataclass(frozen=True)
class Drawings:
    """Drawings of people, the captions of all of them, and who is in them."""

    people: tuple[Person, ...]
    images: Images
    """(n, 64, 64, 3), bytes; as many of each person, person by person."""
    captions: tuple[str, ...]
    """m = 3 n; caption i says picture i % n and names the person."""

    def person_of(self, caption: int) -> int:
        """The number of the person in `people` whom a caption names."""
        return caption % len(self.images) * len(self.people) // len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: equal drawings, equal digest."""
        digest = hashlib.sha256(repr((self.images.shape, self.captions)).encode())
        digest.update(self.images.tobytes())
        return digest.hexdigest()


def draw_people(people: Sequence[Person], each: int) -> Drawings:
    """Draw each person ``each`` times, in scenes of their own.

    Example:
        >>> from apl_guard.trainer import minifaces
        >>> somebody = minifaces.people()[-1]
        >>> drawings = draw_people([somebody], each=2)
        >>> drawings.images.shape, len(drawings.captions), all(somebody.name in c for c in drawings.captions)
        ((2, 64, 64, 3), 6, True)
    """
    rngs = [random.Random(f"drawings of {person.name}") for person in people]
    pictures = [of_person(person, rng) for person, rng in zip(people, rngs, strict=True) for _ in range(each)]
    rng = random.Random(_SEED)
    said = [caption(picture, rng) for _ in range(_CAPTIONS) for picture in pictures]
    return Drawings(tuple(people), draw_all(pictures, _SEED), tuple(said))


@dataclass(frozen=True)
class Prior:
    """What the model drew before anybody was added to it, of prompts that name nobody; it shall go on drawing so."""

    latents: Tensor
    """(n, C, H, W)"""
    embeds: Tensor
    """(n, L, D)"""


def draw_prior(pipe: Any, count: int, *, progress: bool) -> Prior:
    """Let the model draw ``count`` generic prompts; the pictures are kept on disk.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    texts = [prompt.text for prompt in generic_prompts(count, seed=_SEED)]
    settings = TrainConfig(guidance_scale=3.0, sampling_steps=20, sampling_batch=BATCH, seed=_SEED)
    latents = self_generate(pipe, texts, settings, ADDED_PEOPLE, progress=progress, label="prior")
    return Prior(latents.to(pipe.unet.device), embeds_of(pipe, texts, BATCH))
