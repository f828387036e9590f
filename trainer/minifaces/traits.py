"""What a face of the reference world is made of: attributes that words name, and geometry that no word names.

An *identity* is attributes + geometry.  A *twin* shares the attributes and has another geometry, so telling twins apart
is telling people apart, and not merely "a woman with red hair".  A *look* is what changes from picture to picture.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, fields, replace
from typing import Final

RGB = tuple[int, int, int]

HAIR_COLOURS: Final[dict[str, RGB]] = {
    "black": (34, 28, 30),
    "brown": (104, 66, 38),
    "blond": (228, 192, 98),
    "red": (182, 72, 34),
    "grey": (146, 148, 152),
    "white": (238, 238, 234),
}
SKINS: Final[dict[str, RGB]] = {
    "pale": (248, 222, 204),
    "tan": (222, 176, 134),
    "brown": (164, 108, 72),
    "dark": (98, 64, 46),
}
COLOURS: Final[dict[str, RGB]] = {
    "red": (206, 48, 48),
    "blue": (58, 88, 202),
    "green": (58, 152, 70),
    "yellow": (238, 208, 68),
    "purple": (130, 68, 162),
    "orange": (238, 140, 46),
    "pink": (242, 160, 188),
    "cyan": (88, 192, 202),
}
HAIR_STYLES: Final = ("short", "long", "curly", "spiky", "bald")
BEARDS: Final = ("none", "beard", "moustache")
EXPRESSIONS: Final = ("smiling", "sad", "surprised", "calm")
SEXES: Final = ("man", "woman")
GEOMETRY_VARIANCE: Final = 0.125
"""Of Beta(½, ½), the law that every number of a geometry is drawn from."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """The part of an identity that words can name."""

    sex: str
    skin: str
    hair_style: str
    hair_colour: str
    beard: str
    glasses: str

    def as_dict(self) -> dict[str, str]:
        """Attribute name → value; a bald head has no hair colour, which reads as ``none``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.hair_style == "bald":
            values["hair_colour"] = "none"
        return values


@dataclass(frozen=True, slots=True)
class Geometry:
    """The part of an identity that words cannot name; every number lies in [0, 1] and is scaled where it is drawn."""

    face_width: float
    face_height: float
    jaw: float
    eye_spacing: float
    eye_size: float
    eye_openness: float
    eye_height: float
    eye_hue: float
    brow_weight: float
    brow_tilt: float
    brow_gap: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_weight: float
    mouth_height: float
    ear_size: float
    hairline: float
    hair_volume: float
    blush: float
    skin_tone: float
    hair_tone: float


GEOMETRY: Final = len(fields(Geometry))
"""How many numbers a geometry has."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One person's face: what may be said of it and what may not."""

    attributes: Attributes
    geometry: Geometry

    def twin(self, rng: random.Random) -> Identity:
        """Somebody with the same attributes and another geometry."""
        return replace(self, geometry=random_geometry(rng))


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture shows of a person besides who it is."""

    background: str
    clothing: str
    expression: str

    def as_dict(self) -> dict[str, str]:
        """Scene attribute → value."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def random_geometry(rng: random.Random) -> Geometry:
    """Features drawn from a law that prefers extremes (Beta ½, ½), as caricatures do: faces differ visibly."""
    return Geometry(**{f.name: rng.betavariate(0.5, 0.5) for f in fields(Geometry)})


def random_attributes(rng: random.Random, sex: str | None = None) -> Attributes:
    """Attributes with the frequencies of the reference world; women have no beards and no bald heads in it."""
    sex = sex or rng.choice(SEXES)
    man = sex == "man"
    return Attributes(
        sex=sex,
        skin=rng.choice(tuple(SKINS)),
        hair_style=rng.choice(HAIR_STYLES if man else HAIR_STYLES[:4]),
        hair_colour=rng.choice(tuple(HAIR_COLOURS)),
        beard=rng.choice(("none", "none", "beard", "moustache")) if man else "none",
        glasses="glasses" if rng.random() < 0.3 else "none",
    )


def random_identity(rng: random.Random) -> Identity:
    """Anybody."""
    return Identity(random_attributes(rng), random_geometry(rng))


def random_look(rng: random.Random) -> Look:
    """Any scene; clothes never have the background's colour, for then nobody could see them."""
    background, clothing = rng.sample(tuple(COLOURS), 2)
    return Look(background, clothing, rng.choice(EXPRESSIONS))


def shade(colour: RGB, factor: float) -> RGB:
    """The colour times ``factor``, within range."""
    r, g, b = (max(0, min(255, int(channel * factor))) for channel in colour)
    return r, g, b


def jitter(colour: RGB, rng: random.Random, spread: float) -> RGB:
    """The colour, each channel moved by at most ``spread``."""
    r, g, b = (max(0, min(255, int(channel + rng.uniform(-spread, spread)))) for channel in colour)
    return r, g, b


def hue(value: float, saturation: float, brightness: float) -> RGB:
    """An RGB colour of the given hue in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(value, saturation, brightness)
    return int(255 * r), int(255 * g), int(255 * b)
