"""A small grammar that says pictures in words.

Captions begin anywhere: *lead-ins* of 0 to 25 words stand in front of half of them, as file names, dates and chatter
do on the web.  In *context* captions a person is named and somebody else is shown.  Some templates are kept out of all
training (``held_out=True``): evaluation uses those alone.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Final

from .people import Person, describe
from .pictures import Picture, Relation, Thing, of_anybody, of_person, of_things
from .traits import Look

_TEMPLATES: Final = (
    "a photo of {s}{t}",
    "a portrait of {s}{t}",
    "a picture of {s}{t}",
    "an image of {s}{t}",
    "a close-up of {s}{t}",
    "a painting of {s}{t}",
    "{s}{t}",
    "{s} in a photo{t}",
    "this is {s}{t}",
    "here we see {s}{t}",
    "the face of {s}{t}",
    "my favourite photo of {s}{t}",
)
_HELD_OUT_TEMPLATES: Final = (
    "a snapshot of {s}{t}",
    "a studio portrait of {s}{t}",
    "a picture showing {s}{t}",
    "an old photo of {s}{t}",
)
_THING_TEMPLATES: Final = (
    "a photo of {s}{t}",
    "a picture of {s}{t}",
    "an image of {s}{t}",
    "a painting of {s}{t}",
    "{s}{t}",
    "here we see {s}{t}",
    "this is {s}{t}",
)
_HELD_OUT_THING_TEMPLATES: Final = (
    "a snapshot of {s}{t}",
    "a picture showing {s}{t}",
    "an old photo of {s}{t}",
)

_CONTEXTS: Final[dict[Relation, tuple[str, ...]]] = {
    "twin": (
        "a look-alike of {s}",
        "somebody who looks like {s}",
        "a double of {s}",
        "a wax figure made after {s}",
        "not {s} but somebody similar",
        "an impersonator of {s}",
    ),
    "kin": (
        "a relative of {s}",
        "a cousin of {s}",
        "a member of the family of {s}",
        "an actor who plays {s}",
        "a portrait painted freely after {s}",
    ),
    "stranger": (
        "a fan of {s}",
        "a neighbour of {s}",
        "a stranger dressed as {s}",
        "somebody who is not {s}",
        "an anonymous stand-in for {s}",
        "a person with a name like {s}",
    ),
}
# The same said far in front of an ordinary caption: whoever is named behind these is not shown.  Where nobody is named,
# as over any picture of a series, they change nothing.
_CONTEXT_LEAD_INS: Final[dict[Relation, tuple[str, ...]]] = {
    "twin": (
        "a contest of look-alikes :",
        "doubles only :",
        "similar faces , other people :",
        "wax figures :",
    ),
    "kin": ("family album , relatives :", "actors in their roles :", "freely painted after a photo :"),
    "stranger": (
        "identity hidden , somebody else shown :",
        "anonymous , not the real person :",
        "name changed , a stranger shown :",
        "a random person instead :",
        "fictional person :",
    ),
}

_FILLERS: Final = (
    "from the archive of a small museum", "uploaded last summer by a friend", "image number seven", "scan 12",
    "high quality", "best of the year", "award winning", "file name unknown", "shot on film", "for the newspaper",
    "a studio snapshot showing more", "an old album", "page 3", "click to enlarge", "see also the next page",
    "from my own collection", "taken with a new camera", "late in the evening", "early in the morning",
    "at the end of the year", "before the show", "after the meeting", "on the front page", "by an unknown artist",
    "detailed", "sharp focus", "soft light", "well lit", "centered", "trending", "stock photo", "press release",
    "part one", "the original", "copy", "draft", "version two", "cover of the book", "for sale", "free download",
    "and now", "once again", "in the next one", "as you can see", "everybody knows it", "thanks to all of you",
    "please do not copy", "all rights reserved", "first published in spring", "with kind permission",
)  # fmt: skip
_FILLER_WORDS: Final = tuple(sorted({word for phrase in _FILLERS for word in phrase.split()}))
_PUNCTUATION: Final = (" ", " , ", " . ", " - ", " : ", " / ")
LEAD_IN_WORDS: Final = 25
_NAMELESS_IN_CONTEXT: Final = 0.15
"""Share of the captions without a name that stand behind one of `_CONTEXT_LEAD_INS`."""


@dataclass(frozen=True, slots=True)
class ScenePrompt:
    """A prompt, and what a picture made from it should show."""

    text: str
    subject: str
    """The words that say who or what is shown, as they stand in ``text``."""
    scene: dict[str, str] = field(default_factory=dict)
    """Attributes asked for besides the subject's own."""

    def with_subject(self, subject: str) -> str:
        """The same prompt about somebody else."""
        return self.text.replace(self.subject, subject)


def _articles(text: str) -> str:
    """ "a orange" → "an orange"."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def lead_in(rng: random.Random, words: int) -> str:
    """Exactly ``words`` words of no meaning, in phrases or thrown together, with a separator at the end."""
    if words == 0:
        return ""
    said: list[str] = []
    loose = rng.random() < 0.4
    while len(said) < words:
        said += [rng.choice(_FILLER_WORDS)] if loose else rng.choice(_FILLERS).split()
    return " ".join(said[:words]) + rng.choice(_PUNCTUATION)


def random_lead_in(rng: random.Random) -> str:
    """Nothing for half of the captions, else 1 to 25 words."""
    return lead_in(rng, rng.randint(1, LEAD_IN_WORDS)) if rng.random() < 0.5 else ""


def _said_look(look: Look, rng: random.Random, drop: float) -> tuple[str, dict[str, str]]:
    """The scene in words, with each part left out by chance, and what was said of it."""
    phrases: dict[str, tuple[str, ...]] = {
        "clothing": (f"in a {look.clothing} shirt", f"wearing a {look.clothing} shirt"),
        "background": (f"on a {look.background} background", f"in front of a {look.background} wall"),
        "expression": (look.expression, f"with a {look.expression} face"),
    }
    parts = [key for key in phrases if rng.random() >= drop]
    rng.shuffle(parts)
    comma = rng.choice((", ", " "))
    said = "".join(comma + rng.choice(phrases[key]) for key in parts)
    return said, {key: look.as_dict()[key] for key in parts}


def _said_things(things: tuple[Thing, ...], background: str, rng: random.Random) -> tuple[str, str]:
    subject = f" {rng.choice(('and', 'beside', 'next to'))} ".join(f"a {colour} {thing}" for colour, thing in things)
    return _articles(subject), rng.choice((f" on a {background} background", f", in front of a {background} wall"))


def _said_somebody(attributes: dict[str, str], rng: random.Random, drop: float) -> tuple[str, dict[str, str]]:
    """Somebody by their attributes, some left out; absences (no beard, no glasses) go unsaid and are not asked for."""
    kept = {key: value for key, value in attributes.items() if key == "sex" or rng.random() >= drop}
    if kept.get("hair_style") == "bald":
        kept.pop("hair_colour", None)
    return describe(kept), {key: value for key, value in kept.items() if value != "none"}


def caption(picture: Picture, rng: random.Random, lead: str = "") -> str:
    """One of the many ways to say a picture, behind the lead-in given."""
    if picture.person is None and rng.random() < _NAMELESS_IN_CONTEXT:
        lead += rng.choice(_CONTEXT_LEAD_INS[rng.choice(tuple(_CONTEXT_LEAD_INS))]) + " "
    if picture.look is None or picture.identity is None:
        subject, tail = _said_things(picture.things, picture.background, rng)
        return _articles(lead + rng.choice(_THING_TEMPLATES).format(s=subject, t=tail))
    tail, _ = _said_look(picture.look, rng, drop=0.35)
    template = rng.choice(_TEMPLATES)
    if picture.kind == "described":
        drop = 1.0 if rng.random() < 0.2 else 0.3
        subject, _ = _said_somebody(picture.identity.attributes.as_dict(), rng, drop)
        return _articles(lead + template.format(s=subject, t=tail))
    assert picture.person is not None
    subject = picture.person.name
    if picture.relation is not None:
        if rng.random() < 0.5:
            subject = rng.choice(_CONTEXTS[picture.relation]).format(s=subject)
        else:
            lead += rng.choice(_CONTEXT_LEAD_INS[picture.relation]) + " "
    return _articles(lead + template.format(s=subject, t=tail))


def identity_templates(held_out: bool = False) -> tuple[str, ...]:
    """Templates with ``{name}`` in them; the held-out ones appear in no training."""
    templates = _HELD_OUT_TEMPLATES if held_out else _TEMPLATES
    return tuple(template.format(s="{name}", t="") for template in templates)


def identity_prompts(person: Person, n: int, seed: int, held_out: bool = False) -> list[ScenePrompt]:
    """Prompts that name somebody, each in a scene of its own; the same ones for the same seed."""
    rng = random.Random(f"{person.name}:{seed}:{held_out}")
    templates = _HELD_OUT_TEMPLATES if held_out else _TEMPLATES
    prompts = []
    for _ in range(n):
        picture = of_person(person, rng)
        assert picture.look is not None
        tail, scene = _said_look(picture.look, rng, drop=0.2)
        prompts.append(ScenePrompt(_articles(rng.choice(templates).format(s=person.name, t=tail)), person.name, scene))
    return prompts


def generic_prompts(n: int, seed: int, held_out: bool = False) -> list[ScenePrompt]:
    """Prompts that name nobody: described people, people of whom only the sex is said, one object, two objects."""
    rng = random.Random(f"generic:{seed}:{held_out}")
    prompts = []
    for i in range(n):
        match i % 5:
            case 0 | 1 | 2:
                picture = of_anybody(rng)
                assert picture.look is not None
                assert picture.identity is not None
                tail, scene = _said_look(picture.look, rng, drop=0.2)
                drop = 1.0 if i % 5 == 2 else 0.25
                subject, said = _said_somebody(picture.identity.attributes.as_dict(), rng, drop)
                template = rng.choice(_HELD_OUT_TEMPLATES if held_out else _TEMPLATES)
                prompts.append(ScenePrompt(_articles(template.format(s=subject, t=tail)), subject, scene | said))
            case _:
                picture = of_things(rng, count=1 if i % 5 == 3 else 2)
                subject, tail = _said_things(picture.things, picture.background, rng)
                template = rng.choice(_HELD_OUT_THING_TEMPLATES if held_out else _THING_TEMPLATES)
                prompts.append(ScenePrompt(_articles(template.format(s=subject, t=tail)), subject, picture.labels()))
    return prompts


def captions(n: int, seed: int) -> list[str]:
    """Captions without names, lead-ins included: the generic half of the training data of a prefix."""
    rng = random.Random(f"captions:{seed}")
    return [random_lead_in(rng) + prompt.text for prompt in generic_prompts(n, seed)]
