"""Finds the names of lists in texts: all lists, each of up to millions of names, in one pass over the text."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from apl_guard.detect.borders import name_at
from apl_guard.detect.disguises import undisguised, with_two_letters
from apl_guard.errors import ExtraMissing, PolicyInvalid
from apl_guard.policy import Names, Role
from apl_guard.request.canonical import canonical
from apl_guard.request.spelling import Spelling, in_small_letters, letters_of, spelling

if TYPE_CHECKING:
    import ahocorasick

__all__ = ["Match", "NamesIndex"]

_LEAST_LETTERS = 2
_MOST_LETTERS = 64
_LEAST_LETTERS_DISGUISED = 5
"""Below, what a disguise might hide is mostly something else: 3D is not Ed."""


@dataclass(frozen=True)
class Match:
    """A name in a text."""

    names: Names
    """The list that it is on."""
    start: int
    end: int
    neutral: str


class _Found(NamedTuple):
    """A name in a text, by its numbers."""

    number: int
    """That of the first name of this spelling."""
    name: int
    start: int
    end: int


class NamesIndex:
    """Names, by how they are spelt. See `apl_guard.request.spelling` for what does not count.

    Args:
        lists: The lists.

    Raises:
        PolicyInvalid: A name has too few or too many letters.
        ExtraMissing: The extra `names` is not installed.
    """

    def __init__(self, lists: Iterable[Names]) -> None:
        self._lists = tuple(lists)
        # Of each spelling: which list, where words begin, what stands in its place. In arrays, for a million objects
        # would take several hundred megabytes.
        self._list_of = array("H")
        self._words = array("Q")
        self._lengths = array("B")
        self._neutral: list[str] = []
        self._same: dict[int, list[int]] = {}
        """Number of a spelling → those of other names that are spelt in the same way."""
        self._automaton = _new_automaton()
        for number, names in enumerate(self._lists):
            for place, person in enumerate(names.listed, 1):
                for name in (person.name, *person.aliases):
                    if (letters := self._add(name, number, person.neutral)) is not None:
                        what = "name" if name == person.name else "alias"
                        raise PolicyInvalid(
                            f"{what} of {letters} letters in entry {place} of the list; "
                            f"expected {_LEAST_LETTERS} to {_MOST_LETTERS}",
                            where=names.file or f"names '{names.id}'",
                        )
                    for written in _ways_to_write(name, loosely=names.role == Role.PROTECTED):
                        self._add(written, number, person.neutral)
        if self._list_of:
            self._automaton.make_automaton()

    def _add(self, name: str, number: int, neutral: str) -> int | None:
        """Take up a name. Too few or too many letters are not taken, and their number is the answer."""
        spelt = spelling(canonical(name))
        if not _LEAST_LETTERS <= len(spelt.letters) <= _MOST_LETTERS:
            return len(spelt.letters)
        new, words = len(self._list_of), _words(spelt)
        known = self._automaton.get(spelt.letters, None)
        if known is None:
            self._automaton.add_word(spelt.letters, new)
        elif any((self._list_of[x], self._words[x]) == (number, words) for x in (known, *self._same.get(known, ()))):
            return None  # of thousands of one name, the first on the list says what is written
        else:
            self._same.setdefault(known, []).append(new)
        self._list_of.append(number)
        self._words.append(words)
        self._lengths.append(len(spelt.letters))
        self._neutral.append(neutral)
        return None

    def find(self, text: str) -> list[Match]:
        """Every name in a canonical text, also where names overlap.

        Names of people who must not be drawn are found in disguise as well, those of people who consent only as they
        are: nobody is drawn for the name of another.
        """
        if not self._list_of:
            return []
        found = list(self._find(text))
        if (small := in_small_letters(text)) != text:
            found = list(dict.fromkeys([*found, *self._find(small)]))
        numbers = Counter(each.number for each in {(each.number, each.start): each for each in found}.values())
        for reading in undisguised(text):
            for each in self._find(reading.text, besides=numbers):
                start, end = reading.span(each.start, each.end, len(text))
                found.append(each._replace(start=start, end=end))
        # Several ways to write a name may be found in one place.
        places = dict.fromkeys((self._list_of[x.name], x.start, x.end, self._neutral[x.name]) for x in found)
        return [Match(self._lists[number], start, end, neutral) for number, start, end, neutral in places]

    def _find(self, text: str, besides: Counter[int] | None = None) -> Iterator[_Found]:
        """The numbers and places of names in a text; in another form of one, only if it shows names besides."""
        # Most texts hold no name, and where their letters come from is then of no interest.
        seen = [number for _, number in self._automaton.iter(letters_of(text))]
        if not seen or (besides and Counter(seen) <= besides):
            return
        spelt = spelling(text)
        for last, number in self._automaton.iter(spelt.letters):
            start, end = last + 1 - self._lengths[number], last + 1
            for each in (number, *self._same.get(number, ())):
                names = self._lists[self._list_of[each]]
                is_protected = names.role == Role.PROTECTED
                if besides is not None and not (is_protected and end - start >= _LEAST_LETTERS_DISGUISED):
                    continue
                if place := name_at(text, spelt, start, end, self._words[each], loosely=is_protected):
                    yield _Found(number, each, *place)


_TITLES = re.compile(r"(?:(?:dr|prof|mr|mrs|ms|sir|dame)\b\.? *)+(?=\w+ +\w)", re.IGNORECASE)
_NOTE = re.compile(r" *(?:[(\[][^()\[\]]*[)\]]|[\"\u201c\u201e\u00ab][^\"\u201c\u201d\u00bb]*[\"\u201c\u201d\u00bb])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_APOSTROPHES, _HYPHENS = "'`\u00b4\u2018\u2019\u02bb\u02bc", "-\u2010\u2011"
_APOSTROPHE, _HYPHEN = (re.compile(rf"(?<=[^\W\d_])[{each}](?=[^\W\d_])") for each in (_APOSTROPHES, _HYPHENS))
_JOINTS = frozenset(_APOSTROPHES + _HYPHENS)


def _ways_to_write(name: str, *, loosely: bool) -> set[str]:
    """What is the same name: `Voss, Mara` is Mara Voss. Loosely, so are Dr. Mara Voss and Mara Voss (actress),
    M\u00fcller is Mueller, O'Hara Ohara, Jo-Ann Li Joann Li, and Ana McLund Ana Mc Lund."""
    ways = {name}
    if loosely:
        ways |= _in_short(name)
        if not _JOINTS.isdisjoint(name):  # most names have none
            ways |= {_APOSTROPHE.sub("", each) for each in ways}
            ways |= {_HYPHEN.sub("", each) for each in ways if " " in each}  # Li-Ke alone would be like
        ways |= {_HUMP.sub(" ", each) for each in ways if " " in each and _HUMP.search(each)}
    if "," in name:
        ways |= {" ".join(reversed(each.split(",", 1))) for each in ways}
    if loosely and not name.isascii():
        ways |= set(map(with_two_letters, ways))
    return (ways | set(map(in_small_letters, ways))) - {name}


def _in_short(name: str) -> set[str]:
    """The name without what a list adds to it: titles, and notes and nicknames in brackets or quotes, unless a single
    word is left."""
    short = {_TITLES.sub("", name, count=1)} if _TITLES.match(name) else {name}
    if _NOTE.search(name):
        short |= {plain for each in short if len((plain := _NOTE.sub("", each)).split()) > 1}
    return short


def _words(spelt: Spelling) -> int:
    """Bit k is set where a word begins at letter k, and must begin there. J. K. is also written JK."""
    begin = [place for place, gap in enumerate(spelt.breaks) if gap]
    ends = [*begin[1:], len(spelt.letters)]
    return sum(1 << place for place, end in zip(begin, ends, strict=True) if end - place > 1 or place - 1 not in begin)


def _new_automaton() -> ahocorasick.Automaton:
    try:
        import ahocorasick
    except ImportError as error:
        raise ExtraMissing("names", needs="pyahocorasick") from error
    return ahocorasick.Automaton(ahocorasick.STORE_INTS)
