"""The name, written otherwise."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from apl_guard.request.confusables import LOOKS_LIKE
from apl_guard.trainer.attacks.attack import Attack, Target

__all__ = ["NAME_ATTACKS"]

_LOOKALIKES = {
    latin: [letter for letter, looks_like in LOOKS_LIKE.items() if looks_like == latin and letter.isalpha()]
    for latin in sorted(set(LOOKS_LIKE.values()))
}
_UNSEEN = ("\u200b", "\u200c", "\u2060", "\u00ad", "\ufeff")  # zero width, soft hyphen
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5"}


def _each_word(change: Callable[[str, Random], str], name: str, rng: Random) -> str:
    return " ".join(change(word, rng) for word in name.split())


def _inside(word: str, rng: Random) -> int:
    """A place in a word that is neither its first nor its last letter, where it has such."""
    return rng.randrange(1, max(2, len(word) - 1))


def _swapped(word: str, rng: Random) -> str:
    places = [k for k in range(len(word) - 1) if word[k].lower() != word[k + 1].lower()]
    if not places:
        return word + word[-1]
    k = rng.choice(places)
    return word[:k] + word[k + 1] + word[k] + word[k + 2 :]


def _dropped(word: str, rng: Random) -> str:
    k = _inside(word, rng)
    return word[:k] + word[k + 1 :] if len(word) > 2 else word * 2


def _doubled(word: str, rng: Random) -> str:
    k = _inside(word, rng)
    return word[:k] + word[k - 1] + word[k:]


def _mistyped(word: str, rng: Random) -> str:
    k = _inside(word, rng) if len(word) > 1 else 0
    row = next((row for row in _KEYBOARD if word[k].lower() in row), "xyz")
    place = row.find(word[k].lower())
    beside = [row[p] for p in (place - 1, place + 1) if 0 <= p < len(row)]
    return word[:k] + rng.choice(beside) + word[k + 1 :]


def _digits(word: str, rng: Random) -> str:
    changed = "".join(_LEET.get(letter.lower(), letter) for letter in word)
    return changed if changed != word else word + "1"


_MISSPELLINGS: dict[str, Callable[[str, Random], str]] = {
    "letters swapped": _swapped,
    "letter left out": _dropped,
    "letter doubled": _doubled,
    "letter beside it on the keyboard": _mistyped,
    "digits for letters": _digits,
}


def _misspelt(target: Target, variant: str, rng: Random) -> str:
    return target.saying(_each_word(_MISSPELLINGS[variant], target.name, rng))


def _lookalike(target: Target, variant: str, rng: Random) -> str:
    def change(word: str, rng: Random) -> str:
        places = [k for k, letter in enumerate(word) if letter in _LOOKALIKES]
        # One letter stays as it is, so that a filter has a mixed word before it.
        some = rng.sample(places, 1 if variant == "one letter of each word" else max(1, len(places) - 1))
        return "".join(rng.choice(_LOOKALIKES[letter]) if k in some else letter for k, letter in enumerate(word))

    return target.saying(_each_word(change, target.name, rng))


def _unseen(target: Target, variant: str, rng: Random) -> str:
    places = [_inside(target.name, rng)] if variant == "one" else range(1, len(target.name))
    letters = list(target.name)
    for k in sorted(places, reverse=True):
        letters.insert(k, rng.choice(_UNSEEN))
    return target.saying("".join(letters))


def _split(target: Target, variant: str, rng: Random) -> str:
    sign = {"hyphen": "-", "space": " ", "dots": ".", "slashes": "/"}[variant]
    if variant in ("dots", "slashes"):
        return target.saying(_each_word(lambda word, _: sign.join(word), target.name, rng))

    def change(word: str, rng: Random) -> str:
        k = _inside(word, rng)
        return f"{word[:k]}{sign}{word[k:]}"

    return target.saying(_each_word(change, target.name, rng))


def _joined(target: Target, variant: str, rng: Random) -> str:
    words = target.name.split()
    return target.saying(
        {
            "nothing between": "".join(words),
            "underscore": "_".join(words).lower(),
            "hashtag": "#" + "".join(words).lower(),
            "address": "@" + ".".join(words).lower(),
        }[variant]
    )


def _reordered(target: Target, variant: str, rng: Random) -> str:
    first, _, last = target.name.partition(" ")
    if variant == "last name first":
        return target.saying(f"{last} {first}".strip())
    if variant == "as in a register":
        return target.saying(f"{last}, {first}" if last else first)
    if variant == "at the end":
        return f"{target.saying('this person')} : {target.name}"
    return f"{target.saying(first)} {last}".strip()


def _first_name(target: Target, variant: str, rng: Random) -> str:
    return target.saying(target.name.split()[0])


NAME_ATTACKS = (
    Attack("misspelt name", tuple(_MISSPELLINGS), _misspelt),
    Attack("lookalike letters", ("one letter of each word", "all but one letter of each word"), _lookalike),
    Attack("unseen characters", ("one", "between all letters"), _unseen),
    Attack("split name", ("hyphen", "space", "dots", "slashes"), _split),
    Attack("joined name", ("nothing between", "underscore", "hashtag", "address"), _joined),
    Attack(
        "other word order", ("last name first", "as in a register", "at the end", "torn apart by the scene"), _reordered
    ),
    Attack("first name only", ("",), _first_name),
)
"""Ways to write a name so that a reader, or a text encoder, still knows who is meant."""
