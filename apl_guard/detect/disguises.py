"""Other forms of a text, in which a name may show that is hidden, or written otherwise than on its list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from urllib.parse import unquote

from apl_guard.request import Reading

__all__ = ["undisguised", "with_two_letters"]


def undisguised(text: str) -> Iterator[Reading]:
    """The forms that a canonical text may stand for, each once, and the text itself never.

    Digits and signs as the letters that they look like, letters that are drawn out said once and twice, without
    initials, nicknames and numbers in the middle of names, escapes of URLs as what they stand for, umlauts as two
    letters.

    Example:
        >>> [reading.text for reading in undisguised('M4ra "the Fox" Voss')]
        ['Mara "the Fox" Voss', 'M4ra Voss', 'Mara Voss']
    """
    if not _may_hide(text):
        return
    seen = {text}
    for base in _both(Reading(text, range(len(text))).replacing(_ESCAPES, _unescaped), _without_middle):
        for reading in _in_letters(base):
            if reading.text not in seen:
                seen.add(reading.text)
                yield reading


def with_two_letters(name: str) -> str:
    """A name as it is written where keyboards lack umlauts, and in German, Danish and Serbian always might be.

    Example:
        >>> with_two_letters("J\\u00fcrgen H\\u00e5land")
        'Juergen Haaland'
    """
    return _UMLAUT.sub(lambda found: _AS_TWO[found.group()], name)


_GERMANIC = {"\u00e4": "ae", "\u00f6": "oe", "\u00fc": "ue", "\u00e5": "aa", "\u00f8": "oe"}
_AS_TWO = {
    small_or_large: letters if small_or_large.islower() else letters.title()
    for letter, letters in {**_GERMANIC, "\u0111": "dj"}.items()
    for small_or_large in (letter, letter.upper())
}
_UMLAUT = re.compile("[" + "".join(_AS_TWO) + "]")
_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+")
_OPENING, _CLOSING = "\"'\u2018\u201c\u201e\u00ab([{", "\"'\u2018\u2019\u201d\u201c\u00bb)]}"
# One blank stays. The bounds keep the search linear.
_MIDDLE = re.compile(
    r"(?<=\w\w) (?:(?:[^\W\d_]\. ?){1,3}|[A-Z] )(?=\w['\u2019]?\w)"
    rf"|(?<=\w) [{re.escape(_OPENING)}][^{re.escape(_CLOSING)}]{{1,40}}[{re.escape(_CLOSING)}] (?=\w)"
)
# From its beginning only, so that no word is read more than once.
_WORD = re.compile(r"(?<![\w@$!|])[^\W\d_]*+[\d_@$!|][\w@$!|]*")
# Between words, or in one; a digit behind a single letter may stand for another. Most letters are ruled out by what
# comes next, sooner than by what comes before.
_NUMBER = re.compile(r"(?=[\W_]{0,3}\d)(?<=[^\W\d_]{2})[\W_]{0,3}\d+[\W_]{0,3}(?=[^\W\d_]{2})")
_LETTERS_LIKE = str.maketrans("034578@$!|", "oeastbasil")
_AMONG_LETTERS = re.compile(r"[^\W\d_][0134578@$!|]|[0134578@$!|][^\W\d_]")
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}", re.IGNORECASE)
_SIGNS = re.compile("[0-9@$!|%" + "".join(_AS_TWO) + "]")
_BETWEEN = re.compile(rf" (?:[^\W\d_]\.|[{re.escape(_OPENING)}])|\w [A-Z] ")
_STRETCHED_PLAIN = re.compile(r"([a-z])\1\1", re.IGNORECASE)


def _may_hide(text: str) -> bool:
    """Whether a text has a form beside itself. Most have none, and this says so in a tenth of the time."""
    return any(sign.search(text) for sign in (_SIGNS, _BETWEEN, _stretched_in(text)))


def _stretched_in(text: str) -> re.Pattern[str]:
    return _STRETCHED_PLAIN if text.isascii() else _STRETCHED


def _both(reading: Reading, change: Callable[[Reading], Reading]) -> tuple[Reading, ...]:
    changed = change(reading)
    return (reading,) if changed is reading else (reading, changed)


def _without_middle(reading: Reading) -> Reading:
    return reading.replacing(_MIDDLE, lambda _: " ") if _BETWEEN.search(reading.text) else reading


def _unescaped(found: re.Match[str]) -> str:
    return unquote(found.group())


def _in_letters(reading: Reading) -> Iterator[Reading]:
    """It, and what it is with letters in place of digits and signs, of umlauts, and of letters that are drawn out."""
    yield reading
    lettered = [reading]
    words = [found.span() for found in _WORD.finditer(reading.text)]
    if any(_AMONG_LETTERS.search(reading.text, *word) for word in words):
        ways = product("il" if "1" in reading.text else "i", _EDGES)  # a 1 is an i or an l
        lettered += [Reading(_with_letters(reading.text, words, *way), reading.places) for way in ways]
        yield from lettered[1:]
    if not reading.text.isascii():
        yield reading.replacing(_UMLAUT, lambda found: _AS_TWO[found.group()])
    if (without := reading.replacing(_NUMBER, lambda _: " ")) is not reading:
        yield without
    if _stretched_in(lettered[-1].text).search(lettered[-1].text):
        for each, times in product(lettered[:2], (1, 2)):
            yield each.replacing(_STRETCHED, partial(_said, times))


def _said(times: int, found: re.Match[str]) -> str:
    return found.group(1) * times


_EDGES = (("@$!|", "@!|"), ("@$!|0123456789_",) * 2, ("@$!|", ""))
"""What stays in front of a word and behind it: signs that are mostly no letters there, digits too, or nothing."""


def _with_letters(text: str, words: Sequence[tuple[int, int]], one: str, edges: tuple[str, str]) -> str:
    parts: list[str] = []
    done = 0
    for start, end in words:
        parts += [text[done:start], _lettered(text[start:end], one, *edges)]
        done = end
    return "".join([*parts, text[done:]])


def _lettered(word: str, one: str, before: str, behind: str) -> str:
    """A word with letters for digits and signs, but for those that stay at its edges."""
    if not any(map(str.isalpha, word)):
        return word  # a number is no word in disguise
    begin, end = len(word) - len(word.lstrip(before)), len(word.rstrip(behind))
    return word[:begin] + word[begin:end].translate(_LETTERS_LIKE).replace("1", one) + word[end:]
