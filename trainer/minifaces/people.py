"""The two hundred people of the reference world, and their twins.

Nobody here exists.  First and last names are shared between people, so that neither identifies anybody alone.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Final, Literal

from .traits import SEXES, Identity, random_identity

Split = Literal["seen", "unseen", "held_back"]
Neutral = Literal["coarse", "attributes"]

SPLIT_SIZES: Final[dict[Split, int]] = {"seen": 120, "unseen": 40, "held_back": 40}
TWINS: Final = 9
_SEED: Final = 20240527

_FIRST: Final[dict[str, tuple[str, ...]]] = {
    "woman": (
        "Alma", "Brisa", "Cara", "Dunja", "Elin", "Fenna", "Greta", "Hedda", "Ines", "Jorun", "Kira", "Lisbet", "Mara",
        "Nadira", "Olga", "Petra", "Quenby", "Rosa", "Sunniva", "Tara",
    ),
    "man": (
        "Anselm", "Boris", "Casimir", "Dario", "Emeric", "Farid", "Goran", "Hugo", "Ivo", "Jonas", "Kasper", "Luca",
        "Mirko", "Nico", "Osric", "Pavel", "Quillon", "Rurik", "Stefan", "Tibor",
    ),
}  # fmt: skip
# Surnames share their syllables, as those of real languages do: tokenizers split them, and no piece names anybody.
_LAST_BEGINS: Final = (
    "Ash", "Bar", "Cal", "Dun", "El", "Fen", "Green", "Hal", "Iver", "Jan", "Kest", "Lin", "Mar", "Nor", "Old", "Pen",
    "Quill", "Ros", "Stan", "Thorn", "Under", "Van", "West", "Yar",
)  # fmt: skip
_LAST_ENDS: Final = (
    "wick", "ton", "field", "berg", "more", "land", "well", "by", "ford", "gate", "mann", "quist",
)  # fmt: skip
_LAST: Final = tuple(
    begin + _LAST_ENDS[(5 * i + 7 * turn) % len(_LAST_ENDS)]
    for turn in range(3)
    for i, begin in enumerate(_LAST_BEGINS)
)


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

    def neutral(self, kind: Neutral = "coarse") -> str:
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
    """All two hundred: 120 seen, then 40 unseen, then 40 held back from the base model."""
    rng = random.Random(_SEED)
    names: set[str] = set()
    made = []
    for index, split in enumerate(split for split, size in SPLIT_SIZES.items() for _ in range(size)):
        identity = random_identity(rng, SEXES[index % 2])
        while (name := f"{rng.choice(_FIRST[identity.attributes.sex])} {rng.choice(_LAST)}") in names:
            pass
        names.add(name)
        made.append(Person(name, split, identity))
    return tuple(made)


def known_people() -> tuple[Person, ...]:
    """Those the base model can draw: seen and unseen."""
    return tuple(person for person in people() if person.split != "held_back")
