"""What names are compared by: the letters of a canonical text, without case, accents, signs and spaces.

This is coarser than `canonical`, so nothing tells two texts apart for the backend and not for the comparison.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from apl_guard.request.canonical import is_vowel_sign
from apl_guard.request.confusables import LOOKS_LIKE

__all__ = ["Break", "Spelling", "in_small_letters", "is_hangul", "is_leftward", "letters_of", "spelling"]


class Break:
    """How a letter is set apart from the one before it."""

    NONE = 0
    SIGN = 1
    """By signs without space, or between letter and digit."""
    SPACE = 2


@dataclass(frozen=True)
class Spelling:
    """What names are compared by."""

    letters: str
    """Letters, vowel signs and digits alone: without case, accents, signs and spaces, lookalikes as Latin letters."""
    places: tuple[int, ...]
    """For each, the character of the text that it comes from."""
    breaks: tuple[int, ...]
    """For each, the `Break` before it. The first counts as set apart."""

    def starts_word(self, position: int) -> bool:
        """Whether a word can start at this letter.

        Scripts without spaces let one start at every character but within a syllable, and one can start where Arabic
        or Hebrew end and another script begins: small words are written without a space before a name.
        """
        if position >= len(self.letters) or self.breaks[position] > 0:
            return True
        before, letter = self.letters[position - 1], self.letters[position]
        if _is_unspaced(letter) or _is_unspaced(before):
            # A syllable of Hangul is several letters and one character.
            is_new = self.places[position] != self.places[position - 1]
            return (
                is_new
                and letter not in _AFTER_ITS_CONSONANT
                and before not in _BEFORE_ITS_CONSONANT
                and (not unicodedata.category(letter).startswith("M"))
            )
        return is_leftward(before) != is_leftward(letter)

    def is_spaced_at_will(self, position: int, start: int) -> bool:
        """Whether a space before this letter says nothing about words, in a name that starts at `start`.

        So it is in scripts without spaces: family and given name are written with one or without. Korean has spaces
        between words, so there the name must also begin a word.
        """
        before, letter = self.letters[position - 1], self.letters[position]
        if not (_is_unspaced(before) and _is_unspaced(letter)):
            return False
        return self.breaks[start] > 0 or not is_hangul(letter)


def in_small_letters(text: str) -> str:
    """The same text with small letters where they look like others than their capitals do.

    A Greek \u039d looks like an N, and \u03bd like a v: without case they are spelt as one only if both are small.

    Example:
        >>> in_small_letters("\u0395\u039b\u0395\u039d\u0397 May") == "\u0395\u039b\u0395\u03bd\u03b7 May"
        True
    """
    return text if text.isascii() else "".join(x.lower() if x in _capitals_apart() else x for x in text)


@lru_cache(maxsize=1)
def _capitals_apart() -> frozenset[str]:
    capitals = {letter.upper() for letter in LOOKS_LIKE} | set(LOOKS_LIKE)
    return frozenset(
        x for x in capitals if len(x) == len(x.lower()) == 1 and x != x.lower() and _spell(x) != _spell(x.lower())
    )


@lru_cache(maxsize=4096)
def is_hangul(letter: str) -> bool:
    """Whether it is Korean."""
    return unicodedata.name(letter, "").startswith("HANGUL ")


@lru_cache(maxsize=4096)
def is_leftward(letter: str) -> bool:
    """Whether it is of a script that runs from right to left, such as Arabic."""
    return unicodedata.bidirectional(letter) in ("R", "AL")


def letters_of(text: str) -> str:
    """The letters of a spelling, without where they come from; in a fiftieth of the time.

    Example:
        >>> letters_of("Ma-ra V\u00f6ss")
        'maravoss'
    """
    return text.translate(_spelt)


def spelling(text: str) -> Spelling:
    """Spell a canonical text.

    Example:
        >>> spelling("Ma-ra V\u00f6ss").letters
        'maravoss'
    """
    letters: list[str] = []
    places: list[int] = []
    breaks: list[int] = []
    gap = Break.SPACE
    for place, character in enumerate(text):
        spelt = _spell(character)
        if not spelt:
            if unicodedata.category(character)[0] != "M" and not _is_stretch(character):
                gap = max(gap, Break.SPACE if character.isspace() else Break.SIGN)
            continue
        for letter in spelt:
            if gap == Break.NONE and letter.isdigit() != letters[-1].isdigit():
                gap = Break.SIGN
            letters.append(letter)
            places.append(place)
            breaks.append(gap)
            gap = Break.NONE
    return Spelling("".join(letters), tuple(places), tuple(breaks))


_MOST_SPELT = 65536


@lru_cache(maxsize=_MOST_SPELT)
def _spell(character: str) -> str:
    """The letters that a character stands for; none for signs, marks and spaces."""
    plain = LOOKS_LIKE.get(character, character).casefold()
    plain = unicodedata.normalize("NFKD", plain).casefold()
    return "".join(_plain(letter) for letter in plain if _is_spelt(letter))


class _Spelt(dict[int, str | None]):
    """Code of a character → what it is spelt as, for `str.translate`. None lets it go, faster than no letters do."""

    def __missing__(self, code: int) -> str | None:
        spelt = _spell(chr(code)) or None
        if len(self) < _MOST_SPELT:
            self[code] = spelt
        return spelt


_spelt = _Spelt()


def _plain(letter: str) -> str:
    """Without a stroke or hook, which Unicode does not count among the accents that can be taken off."""
    if letter in LOOKS_LIKE:
        return LOOKS_LIKE[letter].casefold()
    if letter in _SPELT_AS:
        return _SPELT_AS[letter]
    stroked = None if letter.isascii() else _STROKED.match(unicodedata.name(letter, ""))
    return stroked.group(1).lower() if stroked else letter


_STROKED = re.compile(r"LATIN (?:SMALL|CAPITAL) LETTER ([A-Z]) WITH ")
_SPELT_AS = {
    **{"\u00e6": "ae", "\u0153": "oe", "\u00fe": "th", "\u00f0": "d"},
    **{"\u0649": "\u064a", "\u06cc": "\u064a", "\u06d2": "\u064a", "\u06a9": "\u0643", "\u0629": "\u0647"},
    **{"\u06c1": "\u0647", "\u06be": "\u0647", "\u06d5": "\u0647", "\u0671": "\u0627", "\u0901": "\u0902"},
}
"""How ae, oe, thorn and eth are written where keyboards lack them; letters that keyboards of Arabic, Persian and Urdu
each have in place of the other; the two signs of Devanagari for a vowel through the nose."""


def _is_spelt(letter: str) -> bool:
    if _is_stretch(letter) or _is_apostrophe(letter):
        return False
    return letter.isalnum() or is_vowel_sign(letter)


def _is_stretch(letter: str) -> bool:
    """Whether it only draws a word out, as the Arabic tatweel and its like in N'Ko do."""
    return letter in "\u0640\u07fa"


def _is_apostrophe(letter: str) -> bool:
    """Whether it is a sign that Unicode counts among the letters, such as the apostrophes of Hawaiian and Ukrainian."""
    return letter in "\ua78b\ua78c\u0559\u02c7" or (
        unicodedata.category(letter) == "Lm" and unicodedata.name(letter, "").startswith("MODIFIER LETTER ")
    )


@lru_cache(maxsize=4096)
def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_UNSPACED)


_UNSPACED = (
    *("CJK ", "IDEOGRAPHIC ", "BOPOMOFO ", "HIRAGANA ", "KATAKANA ", "KATAKANA-HIRAGANA ", "HANGUL ", "YI "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN "),
)
_AFTER_ITS_CONSONANT = frozenset(
    "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3"
    "\u30fc\u3083\u3085\u3087\u30a1\u30a3\u30a5\u30a7\u30a9\u30e3\u30e5\u30e7\u30ee"
)
_BEFORE_ITS_CONSONANT = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
"""Vowels of Thai, Lao and Japanese that are letters of their own: no word begins or ends between them and theirs."""
