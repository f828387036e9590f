"""The output check of the reference world: its second recogniser, and everybody whom the model knows in the gallery."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import torch

from apl_guard.detect.gallery import Embeddings, Gallery
from apl_guard.detect.output import OutputCheck
from apl_guard.detect.pictures import Picture
from apl_guard.trainer.minifaces import WEIGHTS, known_people
from apl_guard.trainer.minifaces.autoencoder import to_tensor
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.judge import load_guard_recogniser
from apl_guard.trainer.minifaces.judge_training import portraits
from apl_guard.trainer.minifaces.traits import Identity, random_identity

__all__ = ["OutputRecogniser", "reference_check"]

WITHHELD = 0.01
"""One in a hundred pictures of strangers is withheld, unless told otherwise."""
_EACH = 3
"""Drawings of each person in the gallery."""
_STRANGERS = 500


class OutputRecogniser:
    """The second recogniser of the reference world, which never judges. It takes every picture for one face."""

    name = "minifaces guard 2"

    def __init__(self) -> None:
        self._network = load_guard_recogniser(WEIGHTS / "judges.safetensors")

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture]) -> list[Embeddings]:
        """One embedding for each picture, shape (1, GEOMETRY)."""
        parts = [np.stack(pictures[k : k + 64]) for k in range(0, len(pictures), 64)]
        rows = torch.cat([self._network(to_tensor(part)) for part in parts]) if parts else torch.empty(0, 1)
        return [row[None].numpy() for row in rows]


def reference_check(seed: int = 0, withheld: float = WITHHELD) -> OutputCheck:
    """An output check whose gallery holds the 160 people whom the model knows.

    Args:
        seed: Of the drawings that the people are enrolled from.
        withheld: The share of pictures of strangers that may be withheld by mistake; it sets the threshold.
    """
    recogniser, gallery, closest = _enrolled(seed)
    return OutputCheck(recogniser, gallery, float(np.quantile(closest, 1 - withheld)), seconds=120)


@functools.cache
def _enrolled(seed: int) -> tuple[OutputRecogniser, Gallery, Embeddings]:
    """The recogniser, its gallery, and how like the nearest person in it each of many strangers is."""
    recogniser = OutputRecogniser()
    people = known_people()
    drawn = _draw([person.identity for person in people], _EACH, seed)
    gallery = Gallery.enroll(
        recogniser,
        {person.name: drawn[k * _EACH : (k + 1) * _EACH] for k, person in enumerate(people)},
        least_alike=-1.0,  # drawings are of whom they say, however little the recogniser sees of it
    )
    rng = random.Random(f"strangers of the output check {seed}")
    strangers = recogniser(_draw([random_identity(rng) for _ in range(_STRANGERS)], 1, seed + 1))
    return recogniser, gallery, (np.concatenate(strangers) @ gallery.embeddings.T).max(1)


def _draw(identities: Sequence[Identity], each: int, seed: int) -> list[Picture]:
    """Each person so often, one after the other."""
    return list(draw_all(portraits(identities, each, random.Random(f"output check {seed}")), seed))
