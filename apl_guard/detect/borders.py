"""Whether letters of a text that spell a name are that name, or a part of other words."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import takewhile

from apl_guard.request.spelling import Break, Spelling, is_hangul, is_leftward

__all__ = ["name_at"]

_LEAST_LETTERS_JOINED = 8
"""Below, a name written as one word is mostly another word: Li Ke and like."""
_LEAST_LETTERS_JOINED_WITHOUT_VOWELS = 6
"""The same for Arabic and Hebrew, which leave most vowels out."""
_LEAST_LETTERS_OF_PLURAL = 6
"""Below, a name with an s behind it is mostly another word: Ye and yes."""
_LEAST_LETTERS_ALONE = 4
"""Below, what is left of a word of Arabic or Hebrew without its first letter is mostly another word."""
_MOST_SYLLABLES_ALONE = 2
"""Of Korean. Up to here a name is mostly also the beginning of longer ones."""
_MOST_KANA_ALONE = 4


def name_at(text: str, spelt: Spelling, start: int, end: int, words: int, *, loosely: bool) -> tuple[int, int] | None:
    """Where in a text the name is that its letters spell from `start` to before `end`; None where they are none.

    Args:
        text: The canonical text.
        spelt: How it is spelt.
        start: The first letter.
        end: One past the last.
        words: Bit k is set where a word of the name begins at its letter k.
        loosely: Whether the name also counts with an ending or a small word attached to it. To hold somebody for a
            person who may be drawn, it must not.
    """
    place, past = spelt.places[start], spelt.places[end - 1] + 1
    if words >> 1 & 1 and _is_contracted(text, place):
        return None
    begin = [start + k for k in range(1, end - start) if words >> k & 1]
    is_humped = bool(begin) and all(_is_hump(text, spelt, each) for each in begin)
    least = _LEAST_LETTERS_JOINED_WITHOUT_VOWELS if is_leftward(spelt.letters[start]) else _LEAST_LETTERS_JOINED
    is_long = end - start >= least or is_humped
    if not _is_in_one(spelt, start, end, words, is_long):
        return None
    may_hump = loosely and is_long and words > 1 and Break.SPACE not in spelt.breaks[start + 1 : end]
    if not (
        spelt.starts_word(start)
        or (may_hump and _is_hump(text, spelt, start))
        or (loosely and _is_apart(text, spelt, start))
        or (loosely and _is_behind_contraction(text, spelt, start))
        or (loosely and _is_behind_small_word(spelt, start, end, words))
    ):
        return None
    if not (
        spelt.starts_word(end) or (may_hump and _is_hump(text, spelt, end)) or (loosely and _is_apart(text, spelt, end))
    ):
        may_be_plural = loosely and end - start >= _LEAST_LETTERS_OF_PLURAL
        plural = _letters_of_plural(spelt, end) if may_be_plural else 0
        if not plural:
            return None
        past = spelt.places[end + plural - 1] + 1
    return (place, past) if _is_whole(text, place, past) else None


def _is_in_one(spelt: Spelling, start: int, end: int, words: int, is_long: bool) -> bool:
    """Whether nothing parts the letters that does not part the words of the name."""
    for place in range(start + 1, end):
        begins_word = words >> (place - start) & 1
        if begins_word and not is_long and not spelt.starts_word(place):
            return False
        if spelt.breaks[place] == Break.SPACE and not begins_word and not spelt.is_spaced_at_will(place, start):
            # A space where the name has none counts between letters that stand alone, as in M a r a.
            before_is_alone = place - 1 == start or spelt.breaks[place - 1]
            after_is_alone = place + 1 == end or spelt.breaks[place + 1]
            if not (before_is_alone and after_is_alone):
                return False
    return True


def _is_hump(text: str, spelt: Spelling, position: int) -> bool:
    """Whether a capital follows a small letter there, as between the words of `photoOfMaraVoss`."""
    before, here = spelt.places[position - 1], spelt.places[position]
    return here == before + 1 and text[before].islower() and text[here].isupper()


def _is_apart(text: str, spelt: Spelling, position: int) -> bool:
    """Whether a text encoder reads another word from a letter on, in Latin letters that stand in one.

    It does behind an accent that Unicode has no small letter with, such as a stroke through an x or the dot of a
    Turkish capital i, and where another script begins or ends.
    """
    before, here = spelt.places[position - 1], spelt.places[position]
    if before == here:
        return False
    has_mark = here > before + 1 or len(text[before].lower()) > 1
    is_latin = _is_latin(text[before]), _is_latin(text[here])
    return is_latin[0] != is_latin[1] or (has_mark and all(is_latin))


_APOSTROPHES = "'\u2018\u2019\u201b\u02bc"
_CONTRACTED = ("s", "t", "d", "m", "ll", "re", "ve")


def _is_contracted(text: str, place: int) -> bool:
    """Whether a letter belongs to the word before it, as an 's does, and is no initial of a name."""
    return (
        place > 1
        and text[place].lower() in _CONTRACTED
        and text[place - 1] in _APOSTROPHES
        and text[place - 2].isalnum()
    )


def _is_behind_contraction(text: str, spelt: Spelling, start: int) -> bool:
    """Whether the 's of a word stands before a name, or one of its like: text encoders begin a word behind it, whatever
    letter follows."""
    return any(
        spelt.letters.endswith(ending, 0, start)
        and not any(spelt.breaks[start - len(ending) + 1 : start + 1])
        and text[max(spelt.places[start - len(ending)] - 1, 0)] in _APOSTROPHES
        for ending in _CONTRACTED
    )


def _letters_of_plural(spelt: Spelling, end: int) -> int:
    """How many letters of a plural, or of a genitive without its apostrophe, follow a name; 0 where none do."""
    if not spelt.letters[end - 1].isascii():
        return 0
    for ending in ("s", "es"):
        after = end + len(ending)
        is_there = spelt.letters.startswith(ending, end) and not any(spelt.breaks[end:after])
        if is_there and spelt.starts_word(after):
            return len(ending)
    return 0


_SMALL_WORDS = frozenset(
    [
        *("\u0648", "\u0641", "\u0628", "\u0644", "\u0643", "\u0648\u0628", "\u0648\u0644", "\u0648\u0643"),
        *("\u0641\u0628", "\u0641\u0644", "\u05d5", "\u05d1", "\u05dc", "\u05db", "\u05d5\u05d1", "\u05d5\u05dc"),
    ]
)
"""And, in, to and like of Arabic and Hebrew, which are written in one with the word behind them."""


def _is_behind_small_word(spelt: Spelling, start: int, end: int, words: int) -> bool:
    if words <= 1 and end - start < _LEAST_LETTERS_ALONE:
        return False
    return any(
        start >= length
        and spelt.letters[start - length : start] in _SMALL_WORDS
        and spelt.starts_word(start - length)
        and not any(spelt.breaks[start - length + 1 : start + 1])
        for length in (1, 2)
    )


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a short name of Korean or in kana is not the beginning or a part of a longer word.

    Their neighbours could be words of their own; those of a longer name mostly are.
    """
    name = text[start:end].replace(" ", "")
    if len(name) <= _MOST_SYLLABLES_ALONE and all(map(is_hangul, name)):
        behind = "".join(takewhile(is_hangul, text[end : end + _LONGEST_PARTICLE + 1]))
        return not (start and is_hangul(text[start - 1])) and behind in _PARTICLES
    if len(name) <= _MOST_KANA_ALONE and all(map(_is_katakana, name)):
        return not (start and _is_katakana(text[start - 1])) and not _is_katakana(text[end : end + 1])
    return True


_BEHIND_NAMES = (
    "\uc740 \ub294 \uc774 \uac00 \uc744 \ub97c "
    "\uc758 \uc640 \uacfc \ub3c4 \ub9cc \uc5d0 "
    "\ub85c \ub791 \uc57c \uc544 \uc528 \ub2d8 "
    "\uad70 \uc591 \uaed8 \uc774\ub791 \uc73c\ub85c \uc5d0\uac8c "
    "\uc5d0\uc11c \ud55c\ud14c \uaed8\uc11c \uae4c\uc9c0 \ubd80\ud130 \ucc98\ub7fc "
    "\ubcf4\ub2e4 \ud558\uace0 \uac19\uc740 \uc774\ub098 \ub77c\ub294 \uc774\ub77c\ub294 "
    "\uc5d0\uac8c\uc11c \ud55c\ud14c\uc11c \uc528\uc758 \uc528\uac00 \uc528\ub294 \uc528\ub97c "
    "\ub2d8\uc758 \ub2d8\uc774 "
)
_PARTICLES = frozenset(["", *_BEHIND_NAMES.split()])
"""What is written in one with a name before it: particles, and forms of address."""
_LONGEST_PARTICLE = max(map(len, _PARTICLES))


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN ")


@lru_cache(maxsize=4096)
def _is_katakana(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("KATAKANA LETTER ") or letter == "\u30fc"
