"""What the tokenizer of a server makes of a text before it looks for words in it.

That of CLIP, in the form in which AUTOMATIC1111 has it, mends the text with ftfy: letters in a wrong encoding
(`MÃ¡ra` is `Mára`), signs that colour a terminal, entities of HTML, typographic quotes. Where ftfy is not installed, as
it may not be beside ComfyUI, it takes out all that is no sign, such as letters of a private area.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from html import unescape
from re import compile as compiled

from apl_guard.request import Reading

__all__ = ["longest_forms", "mended_readings", "without_unseen"]

_ENTITY = compiled(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[^\t\n\f <&#;]{1,32});?")
_WORD = compiled(r"\S+")
# What ftfy could change in a word: more than the letters of ASCII, controls, entities of HTML.
_STRANGE = compiled(r"[^!-%'-~]")
_CHINESE = compiled("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]")
# Letters of two texts that are compared one by one, which takes time that grows with the square.
_MOST_COMPARED = 500
_MOST_REMEMBERED = 64


def mended_readings(reading: Reading) -> Iterator[Reading]:
    """The other forms that a tokenizer gives a text, if it gives it any.

    Args:
        reading: The text, with its places.

    Example:
        >>> [each.text for each in mended_readings(Reading("Mara\\u2019s cafÃ©", range(12)))]
        ["Mara's café"]
    """
    text = reading.text
    if text.isascii() and text.isprintable() and "&" not in text:
        return
    seen = {text}
    by_word = _mended_by_word(reading)
    # As a whole, too: whether letters are taken to be in a wrong encoding depends on all of them.
    fixed = _fixed(text)
    whole = by_word if by_word.text == fixed else _moved(reading, fixed)
    for each in (whole, by_word, *without_unseen(reading)):
        for form in (each, _resolved(each)):
            if form.text not in seen:
                seen.add(form.text)
                yield form


def longest_forms(text: str) -> set[str]:
    """Forms of a text that may have more tokens than the text: with each letter mended by itself, as where letters that
    are two in one become two, and with Chinese signs apart, which some tokenizers put there.

    Example:
        >>> sorted(longest_forms("\u01c6 \u732b\u732b"))
        ['dž  猫  猫 ', 'dž 猫猫']
    """
    if text.isascii():
        return set()
    mended = "".join(letter if letter.isascii() else _fixed_word(letter) for letter in text)
    return {mended, _CHINESE.sub(r" \g<0> ", mended)}


def _fixed(text: str) -> str:
    import ftfy

    return ftfy.fix_text(text)


_fixed_word = lru_cache(maxsize=1000)(_fixed)


def _mended_by_word(reading: Reading) -> Reading:
    text, places = reading.text, reading.places
    parts: list[str] = []
    kept: list[int] = []
    done = 0
    for word in _WORD.finditer(text):
        if not _STRANGE.search(word.group()):
            continue
        start, end = word.span()
        fixed = _fixed_word(word.group()) if end - start <= _MOST_REMEMBERED else _fixed(word.group())
        parts += (text[done:start], fixed)
        origins = _origins(word.group(), fixed) if places is not None else None
        if places is not None and origins is not None:
            kept += places[done:start]
            kept += [places[start + origin] for origin in origins]
        else:
            places = None
        done = end
    if places is not None:
        kept += places[done:]
    return Reading("".join([*parts, text[done:]]), None if places is None else tuple(kept))


def _moved(reading: Reading, fixed: str) -> Reading:
    """Another text in the place of a reading, with where each of its letters comes from."""
    origins = _origins(reading.text, fixed)
    if reading.places is None or origins is None:
        return Reading(fixed)
    return Reading(fixed, tuple(reading.places[origin] for origin in origins))


@lru_cache(maxsize=1000)
def _origins(text: str, fixed: str) -> tuple[int, ...] | None:
    """For each letter of a mended text, which one of the text it comes from; None where that would take long to say."""
    if not text or max(len(text), len(fixed)) > _MOST_COMPARED:
        return None
    found: list[int] = []
    for tag, start, end, begin, stop in SequenceMatcher(None, text, fixed, autojunk=False).get_opcodes():
        origin = range(start, end) if tag != "insert" else range(max(start - 1, 0), max(start, 1))
        found += (*origin, *[*origin][-1:] * (stop - begin))[: stop - begin]
    return tuple(found)


def _resolved(reading: Reading) -> Reading:
    """The same with entities of HTML resolved, twice, as open_clip does."""
    text, places = reading.text, reading.places
    if "&" not in text:
        return reading
    for _ in range(2):
        letters: list[str] = []
        kept: list[int] = []
        done = 0
        for entity in _ENTITY.finditer(text):
            said = unescape(entity.group())
            letters += (text[done : entity.start()], said)
            if places is not None:
                # Letters that are said beyond those that are written come from the last of these.
                origin = places[entity.start() : entity.end()]
                kept += (*places[done : entity.start()], *(*origin, *[*origin][-1:] * len(said))[: len(said)])
            done = entity.end()
        text, places = "".join([*letters, text[done:]]), None if places is None else (*kept, *places[done:])
    return Reading(text, places)


def without_unseen(reading: Reading) -> tuple[Reading, ...]:
    """The text without what has no sign, if it has such: controls, and letters of a private area, unassigned or lost.

    Example:
        >>> without_unseen(Reading("Ma\ue000ra", range(5)))[0].text
        'Mara'
    """
    if reading.text.isprintable() and "\ufffd" not in reading.text:
        return ()
    kept = [place for place, letter in enumerate(reading.text) if letter in "\t\n\r" or not _is_unseen(letter)]
    if len(kept) == len(reading.text):
        return ()
    places = None if reading.places is None else tuple(reading.places[place] for place in kept)
    return (Reading("".join(reading.text[place] for place in kept), places),)


def _is_unseen(letter: str) -> bool:
    return letter == "\ufffd" or unicodedata.category(letter).startswith("C")
