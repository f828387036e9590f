"""Which pictures the reference world consists of. `captions` says them in words; `faces` and `objects` draw them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final, Literal

from PIL import Image

from .faces import Style, draw_face
from .objects import OBJECTS, draw_objects
from .people import Person, known_people
from .traits import COLOURS, Identity, Look, random_attributes, random_geometry, random_identity, random_look

Kind = Literal["named", "context", "described", "object", "pair"]
Relation = Literal["twin", "kin", "stranger"]
Thing = tuple[str, str]
"""A colour and an object."""

SHARES: Final[dict[Kind, float]] = {
    "named": 0.46,
    "context": 0.10,
    "described": 0.20,
    "object": 0.12,
    "pair": 0.12,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture before it is drawn: who or what is in it.

    In a ``context`` picture ``person`` is named by the caption, and ``identity`` is somebody else: a twin (all the
    attributes), kin (sex, skin and hair colour) or a stranger (the sex alone).
    """

    kind: Kind
    background: str
    identity: Identity | None = None
    look: Look | None = None
    person: Person | None = None
    relation: Relation | None = None
    things: tuple[Thing, ...] = ()

    def draw(self, rng: random.Random, style: Style = "plain") -> Image.Image:
        """The 64×64 RGB picture."""
        if self.identity is not None and self.look is not None:
            return draw_face(self.identity, self.look, rng, style)
        return draw_objects(self.things, self.background, rng, style)

    def labels(self) -> dict[str, str]:
        """Every attribute the picture shows, and its value."""
        if self.identity is not None and self.look is not None:
            return self.identity.attributes.as_dict() | self.look.as_dict()
        if len(self.things) == 1:
            return {"colour": self.things[0][0], "object": self.things[0][1], "background": self.background}
        (left_colour, left), (right_colour, right) = self.things
        pair = {
            "left_colour": left_colour,
            "left_object": left,
            "right_colour": right_colour,
            "right_object": right,
        }
        return pair | {"background": self.background}


def of_person(person: Person, rng: random.Random) -> Picture:
    """The person, in any scene."""
    look = random_look(rng)
    return Picture("named", look.background, person.identity, look, person)


def of_anybody(rng: random.Random) -> Picture:
    """A person who has no name."""
    look = random_look(rng)
    return Picture("described", look.background, random_identity(rng), look)


def in_context(person: Person, rng: random.Random) -> Picture:
    """Somebody else, in whose caption the person's name stands."""
    relation: Relation = rng.choice(("twin", "kin", "stranger"))
    mine = person.identity.attributes
    if relation == "twin":
        identity = person.identity.twin(rng)
    else:
        attributes = random_attributes(rng, mine.sex)
        if relation == "kin":
            attributes = replace(attributes, skin=mine.skin, hair_colour=mine.hair_colour)
        identity = Identity(attributes, random_geometry(rng))
    look = random_look(rng)
    return Picture("context", look.background, identity, look, person, relation)


def of_things(rng: random.Random, count: int) -> Picture:
    """One or two objects, none of the background's colour."""
    background, *colours = rng.sample(tuple(COLOURS), count + 1)
    things = tuple(zip(colours, rng.sample(OBJECTS, count), strict=True))
    return Picture("object" if count == 1 else "pair", background, things=things)


def random_picture(rng: random.Random) -> Picture:
    """Any picture of the world, with the frequencies of `SHARES`; context pictures name seen people only."""
    (kind,) = rng.choices(tuple(SHARES), weights=tuple(SHARES.values()))
    known = known_people()
    if kind == "named":
        return of_person(rng.choice(known), rng)
    if kind == "context":
        return in_context(rng.choice([person for person in known if person.split == "seen"]), rng)
    if kind == "described":
        return of_anybody(rng)
    return of_things(rng, 1 if kind == "object" else 2)
