"""A picture of the world: people, their twins, the inked style, things."""

from __future__ import annotations

import random

from PIL import Image

from apl_guard.trainer.report.pictures import sheet

from .faces import SIZE
from .people import people
from .pictures import Picture, of_person, of_things
from .traits import random_look

_COLUMNS = 14
_ROWS = ("a person", "the same", "a twin", "another twin", "inked", "one thing", "two things")


def draw_sheet(seed: int = 0) -> Image.Image:
    """Draw a row of each of `_ROWS`, with its name: below a person the same one, two twins, and the same one inked."""
    rng = random.Random(seed)
    columns: list[list[Image.Image]] = []
    for person in rng.sample(people(), _COLUMNS):
        twins = [Picture("described", (look := random_look(rng)).background, t, look) for t in person.twins(2)]
        cells = [of_person(person, rng).draw(rng) for _ in range(2)]
        cells += [twin.draw(rng) for twin in twins]
        cells += [
            of_person(person, rng).draw(rng, "inked"),
            of_things(rng, 1).draw(rng),
            of_things(rng, 2).draw(rng),
        ]
        columns.append(cells)
    return sheet(dict(zip(_ROWS, zip(*columns, strict=True), strict=True)), SIZE)
