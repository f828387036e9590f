"""What a prompt says without its syntax: without brackets and weights, in each form that it has while it is drawn.

So `(Mara:1.2) (Voss:1.1)` says `Mara Voss`, and `[Mara:a cat:0.5]` says `Mara` and `a cat`. Whatever looks for names
looks at these, too.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from apl_guard.request import Reading
from apl_guard.request.spelling import letters_of

from .mended_readings import mended_readings, without_unseen

__all__ = ["edited_readings", "is_readable", "tokenized_forms", "weighted_readings"]

_MOST_FORMS = 64
_MOST_LEVELS = 20
_MOST_CHARACTERS = 20_000
_MOST_PLACES = 200_000  # of all forms together: each letter of each is looked at several times in a call
_Places = tuple[int, ...]

_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SYNTAX = re.compile(r"\\(?=[()\[\]\\])(.)|\\|[()\[\]]|:\s*[-+]?[\d.]+(?:e[-+]?\d+)?\s*(?=\))", re.I | re.S)
_BRACKET = re.compile(r"\\.|[()\[\]]", re.S)
_SEPARATOR = re.compile(r"\\.|[()\[\]|:]", re.S)
_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?\s*", re.I)


class _TooManyFormsError(Exception):
    """A prompt is drawn in so many forms that nobody reads them."""


def weighted_readings(text: str) -> tuple[Reading, ...]:
    """What a prompt says to ComfyUI, which reads weights; none where that is the text itself.

    Example:
        >>> [reading.text for reading in weighted_readings("(a:1.2) (cat:1.1)")]
        ['a cat']
    """
    return _further(text, ())


def edited_readings(text: str) -> tuple[Reading, ...]:
    """What a prompt says to AUTOMATIC1111, which reads weights, exchanges words while it draws, and shows the model all
    chunks at once, so that a name may stand on both sides of `BREAK`.

    Example:
        >>> [reading.text for reading in edited_readings("a [(red:1.2):blue:0.5] c&#97;t")]
        ['a red:blue:0.5 c&#97;t', 'a red:blue:0.5 cat', 'a red c&#97;t', 'a red cat', 'a blue c&#97;t', 'a blue cat']
        >>> [reading.text for reading in edited_readings("a red BREAK cat")]
        ['a red cat']
    """
    return _further(text, _forms_or_none(text), reads_break=True)


def tokenized_forms(text: str) -> set[str]:
    """All that AUTOMATIC1111 may look for embeddings in: the text, and what it says.

    Example:
        >>> sorted(tokenized_forms("the (king\u2019s:1.2)"))
        ['the (king\u2019s:1.2)', "the king's", 'the king\u2019s']
    """
    plain = _without_syntax(text, _forms_or_none(text))
    return {text, *(form.text for reading in plain for form in (reading, *mended_readings(reading)))}


def _forms_or_none(text: str) -> list[_Places]:
    try:
        return _all_forms(text)
    except _TooManyFormsError:
        return []


def is_readable(text: str) -> bool:
    """Whether AUTOMATIC1111 draws a prompt in so few forms that all of them can be read.

    Example:
        >>> is_readable("a [red|blue] cat"), is_readable("[a|b]" * 7)
        (True, False)
    """
    try:
        _all_forms(text)
    except _TooManyFormsError:
        return False
    return True


def _further(text: str, forms: Iterable[_Places], *, reads_break: bool = False) -> tuple[Reading, ...]:
    """What is to be read besides the text. That a tokenizer makes a quote of another one is nothing to read."""
    found: dict[Reading, None] = {}
    for plain in _without_syntax(text, forms, reads_break=reads_break):
        letters = letters_of(plain.text)
        mended = [each for each in mended_readings(plain) if letters_of(each.text) != letters]
        found |= dict.fromkeys((plain, *mended, *without_unseen(plain)))
    return tuple(each for each in found if each.text != text)


def _without_syntax(text: str, forms: Iterable[_Places], *, reads_break: bool = False) -> Iterator[Reading]:
    """The forms without brackets, weights, and backslashes in front of something."""
    whole = [Reading("".join(text[place] for place in form), form) for form in (tuple(range(len(text))), *forms)]
    if reads_break and "BREAK" in text:
        whole += [form.replacing(_BREAK, lambda _: " ") for form in whole]
    yield from dict.fromkeys(form.replacing(_SYNTAX, lambda found: found.group(1) or "") for form in whole)


class _Brackets(NamedTuple):
    """The brackets of a text that are closed. The others are letters like any."""

    starts: list[int]
    ends: Mapping[int, int]
    """Start → end."""


def _brackets(text: str) -> _Brackets:
    found: dict[int, int] = {}
    opened: list[int] = []
    for sign in _BRACKET.finditer(text):
        if sign.group() in "([":
            opened.append(sign.start())
        elif opened and text[opened[-1]] + sign.group() in ("()", "[]"):
            found[opened.pop()] = sign.start()
    return _Brackets(sorted(found), found)


def _all_forms(text: str) -> list[_Places]:
    """Every form of a text while it is drawn, as the places of its letters.

    Raises:
        _TooManyFormsError: There are more than may be.
    """
    if "[" not in text:
        return []
    if len(text) > _MOST_CHARACTERS:
        raise _TooManyFormsError
    forms = _forms(text, 0, len(text), _brackets(text), 0)
    if sum(map(len, forms)) > _MOST_PLACES:
        raise _TooManyFormsError
    return forms


def _forms(text: str, start: int, end: int, closing: _Brackets, level: int) -> list[_Places]:
    """The same between two places."""
    if level > _MOST_LEVELS:
        raise _TooManyFormsError
    forms: list[list[int]] = [[]]
    place = start
    while place < end:
        following = bisect_left(closing.starts, place)
        bracket = min([*closing.starts[following : following + 1], end])
        for form in forms:
            form += range(place, bracket)
        if bracket == end:
            break
        last = closing.ends[bracket]
        ranges = [(bracket + 1, last)] if text[bracket] == "(" else _choices(text, bracket + 1, last, closing)
        inner = _few(form for each in ranges for form in _forms(text, *each, closing, level + 1))
        if len(inner) == 1:
            for form in forms:
                form += (bracket, *inner[0], last)
        else:
            forms = [[*form, bracket, *option, last] for form in forms for option in inner]
        if len(forms) > _MOST_FORMS:
            raise _TooManyFormsError
        place = last + 1
    return [tuple(form) for form in forms]


def _choices(text: str, start: int, end: int, closing: _Brackets) -> list[tuple[int, int]]:
    """What a square bracket stands for while a prompt is drawn: one place after the other, or all that is in it."""
    cuts = []
    place = start
    while (sign := _SEPARATOR.search(text, place, end)) is not None:
        place = sign.end()
        if sign.start() in closing.ends:
            place = closing.ends[sign.start()] + 1
        elif sign.group() in "|:":
            cuts.append(sign.start())
    parts = list(zip([start, *(cut + 1 for cut in cuts)], [*cuts, end], strict=True))
    if any(text[cut] == "|" for cut in cuts):
        return parts
    if 2 <= len(parts) <= 3 and _NUMBER.fullmatch(text, *parts[-1]):
        return [(start, start) if len(parts) == 2 else parts[0], parts[-2]]
    return [(start, end)]


def _few(forms: Iterable[_Places]) -> list[_Places]:
    found: dict[_Places, None] = {}
    for form in forms:
        found[form] = None
        if len(found) > _MOST_FORMS:
            raise _TooManyFormsError
    return list(found)
