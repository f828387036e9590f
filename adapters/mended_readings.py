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
from itertools import chain
from re import compile as compiled

from apl_guard.request import Reading

__all__ = ["longest_forms", "mended_readings", "without_unseen"]

_ENTITY = compiled(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[^\t\n\f <&#;]{1,32});?")
_WORD_OR_SPACE = compiled(r"\s+|\S+")
_CHINESE = compiled("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]")
_MOST_COMPARED = (
    500  # letters of two texts that are compared letter by letter, which takes time that grows with the square
)


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
    for each in (_mended(reading), _mended_by_word(reading), *without_unseen(reading)):
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
    mended = "".join(letter if letter.isascii() else _fixed(letter) for letter in text)
    return {mended, _CHINESE.sub(r" \g<0> ", mended)}


@lru_cache(maxsize=10_000)
def _fixed(text: str) -> str:
    import ftfy

    return ftfy.fix_text(text)


def _mended(reading: Reading) -> Reading:
    """Mended as a whole: whether letters are taken to be in a wrong encoding depends on all of them."""
    text, fixed = reading.text, _fixed(reading.text)
    if text == fixed:
        return reading
    by_word = _mended_by_word(reading)
    if by_word.text == fixed:
        return by_word
    return _moved(reading, fixed)


def _mended_by_word(reading: Reading) -> Reading:
    words: list[Reading] = []
    for found in _WORD_OR_SPACE.finditer(reading.text):
        places = None if reading.places is None else reading.places[found.start() : found.end()]
        word = Reading(found.group(), places)
        words.append(word if word.text.isascii() and word.text.isprintable() else _moved(word, _fixed(word.text)))
    return _joined(words)


def _joined(parts: list[Reading]) -> Reading:
    text = "".join(part.text for part in parts)
    if any(part.places is None for part in parts):
        return Reading(text)
    return Reading(text, tuple(chain.from_iterable(part.places or () for part in parts)))


def _moved(reading: Reading, fixed: str) -> Reading:
    """Another text in the place of a reading, with where each of its letters comes from."""
    text, places = reading.text, reading.places
    if text == fixed:
        return reading
    if places is None or not text or max(len(text), len(fixed)) > _MOST_COMPARED:
        return Reading(fixed)
    kept: list[int] = []
    for tag, start, end, begin, stop in SequenceMatcher(None, text, fixed, autojunk=False).get_opcodes():
        origin = places[start:end] if tag != "insert" else places[max(start - 1, 0) : max(start, 1)]
        kept += (*origin, *[*origin][-1:] * (stop - begin))[: stop - begin]
    return Reading(fixed, tuple(kept))


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
    kept = [place for place, letter in enumerate(reading.text) if letter in "\t\n\r" or not _is_unseen(letter)]
    if len(kept) == len(reading.text):
        return ()
    places = None if reading.places is None else tuple(reading.places[place] for place in kept)
    return (Reading("".join(reading.text[place] for place in kept), places),)


def _is_unseen(letter: str) -> bool:
    return letter == "\ufffd" or unicodedata.category(letter).startswith("C")
