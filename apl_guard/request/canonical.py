"""One form for texts that look the same, so that what a detector reads is what the text encoder reads."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from apl_guard.request.confusables import LOOKS_LIKE

__all__ = ["as_it_looks", "canonical", "is_vowel_sign"]

# Unicode's Default_Ignorable_Code_Point, of which some are letters or marks. The other control and format
# characters go by their category.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# What a terminal would obey, whole: of "\x1b[31mMara", the letters after the bracket are no part of the name.
_ESCAPE = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]")
# NFKC makes letters of them, which would be of the word before.
_TRADE_MARK = re.compile("[\u2120\u2122\U0001f16a-\U0001f16c]")
_WORD = re.compile(r"\w+")
_MOST_PASSES = 16


def canonical(text: str) -> str:
    """The text that stands for all that look like it.

    NFKC; without default-ignorable, bidirectional and control characters, nor vowel signs that no letter of their
    script stands before; in words that mix Latin letters with others, each letter that looks like a Latin one becomes
    that one; one space for every run of white space.
    Case, accents, the letters of every orthography and whole words of other scripts stay.

    Example:
        >>> canonical("a  photo of \uff2d\u0430r\u200ba V\u043ess")
        'a photo of Mara Voss'
        >>> canonical("\u043a\u043e\u0442")  # a cat, in Russian
        '\u043a\u043e\u0442'
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    for _ in range(_MOST_PASSES):  # one change can make another possible
        before, text = text, _pass(text)
        if text == before:
            break
    return text


def _pass(text: str) -> str:
    text = _TRADE_MARK.sub(r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text)
    text = _IGNORABLE.sub("", _ESCAPE.sub("", text))
    text = "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) not in _UNSEEN)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _without_strays(text)
    text = _WORD.sub(_one_script, text)
    return " ".join(text.split())


_UNSEEN = {"Cc", "Cf"}


def _without_strays(text: str) -> str:
    kept: list[str] = []
    for letter in text:
        if not _is_stray(kept[-1] if kept else " ", letter):
            kept.append(letter)
    return "".join(kept)


def _is_stray(before: str, letter: str) -> bool:
    """Whether it is a vowel sign, as of Indian scripts, behind a Latin letter or none, where it is no vowel at all."""
    if letter.isascii() or not is_vowel_sign(letter):
        return False
    return _is_latin(before) or unicodedata.category(before)[0] not in "LM"


def is_vowel_sign(letter: str) -> bool:
    """Vowel signs of Indian scripts are marks of class 0; accents are marks of other classes. The iota under a Greek
    letter is a mark and spelt, too."""
    is_mark = unicodedata.category(letter) in ("Mc", "Mn")
    return is_mark and (letter == "\u0345" or not unicodedata.combining(letter))


def _one_script(match: re.Match[str]) -> str:
    """Of a word that mixes scripts, the word in Latin letters that it looks like."""
    word = match.group()
    if word.isascii() or not any(map(_is_latin, word)):
        return word
    mixes = any(letter.isalpha() and not _is_latin(letter) for letter in word)
    return "".join(letter if letter in _WRITTEN and not mixes else LOOKS_LIKE.get(letter, letter) for letter in word)


_WRITTEN = frozenset("\u0131\u0251\u0263\u0269\u028b")
"""Lookalikes that languages are written with: Turkish, Ewe, Kabiye and others. Elsewhere they are a disguise."""


def as_it_looks(text: str) -> str:
    """A canonical text with every letter that languages are written with and that looks like another as that one.

    Example:
        >>> as_it_looks("k\u0131rm\u0131z\u0131")
        'kirmizi'
    """
    return text if text.isascii() else "".join(LOOKS_LIKE[x] if x in _WRITTEN else x for x in text)


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return letter.isalpha() and unicodedata.name(letter, "").startswith("LATIN")
