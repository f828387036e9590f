"""The two hundred people of the reference world, and their twins.

Nobody here exists.  They stand in a register, ``people.csv``, and not in a generator, for models know them by their
faces: who they are must not change when code does.  First and last names are shared between people, so that neither
identifies anybody alone; surnames share their syllables, so that no piece of them does.
"""

from __future__ import annotations

import csv
import functools
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal, cast, get_args

from apl_guard.trainer.config import NeutralKind

from .traits import Attributes, Geometry, Identity

Split = Literal["seen", "unseen", "held_back"]

SPLIT_SIZES: Final[dict[Split, int]] = {"seen": 120, "unseen": 40, "held_back": 40}
TWINS: Final = 9


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody the captions name."""

    name: str
    split: Split
    identity: Identity

    @property
    def sex(self) -> str:
        """``man`` or ``woman``."""
        return self.identity.attributes.sex

    @property
    def attributes(self) -> dict[str, str]:
        """Attribute name → value."""
        return self.identity.attributes.as_dict()

    def neutral(self, kind: NeutralKind = "coarse") -> str:
        """What stands for the name in a neutral prompt.

        ``coarse`` keeps the sex alone; ``attributes`` keeps all that words can say.

        >>> person = people()[0]
        >>> person.neutral("coarse") in ("a man", "a woman")
        True
        """
        return f"a {self.sex}" if kind == "coarse" else describe(self.attributes)

    def twins(self, count: int = TWINS) -> tuple[Identity, ...]:
        """Others with this person's attributes and another geometry, always the same ones."""
        rng = random.Random(f"twins of {self.name}")
        return tuple(self.identity.twin(rng) for _ in range(count))


def describe(attributes: dict[str, str]) -> str:
    """A person in words, by the attributes given; those that are missing go unsaid.

    >>> describe({"sex": "man", "skin": "tan", "hair_style": "bald", "beard": "beard", "glasses": "none"})
    'a man with tan skin and a bald head and a beard'
    """
    parts = []
    if "skin" in attributes:
        parts.append(f"{attributes['skin']} skin")
    style, colour = attributes.get("hair_style"), attributes.get("hair_colour")
    if style == "bald":
        parts.append("a bald head")
    elif style or colour not in (None, "none"):
        parts.append(" ".join(word for word in (style, colour, "hair") if word and word != "none"))
    if attributes.get("beard", "none") != "none":
        parts.append(f"a {attributes['beard']}")
    if attributes.get("glasses", "none") != "none":
        parts.append("glasses")
    subject = f"a {attributes['sex']}"
    return f"{subject} with {' and '.join(parts)}" if parts else subject


@functools.cache
def people() -> tuple[Person, ...]:
    """All two hundred, from the register: 120 seen, then 40 unseen, then 40 held back from the base model."""
    with (Path(__file__).parent / "people.csv").open(newline="", encoding="utf-8") as register:
        return tuple(_person(row) for row in csv.DictReader(register))


def _person(row: dict[str, str]) -> Person:
    split = row["split"]
    assert split in get_args(Split)
    attributes = Attributes(**{f.name: row[f.name] for f in fields(Attributes)})
    geometry = Geometry(**{f.name: float(row[f.name]) for f in fields(Geometry)})
    return Person(row["name"], cast(Split, split), Identity(attributes, geometry))


def known_people() -> tuple[Person, ...]:
    """Those the base model can draw: seen and unseen."""
    return tuple(person for person in people() if person.split != "held_back")
