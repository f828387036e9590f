"""Finds the names of lists in texts: all lists, each of up to millions of names, in one pass over the text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apl_guard.errors import ExtraMissing, PolicyInvalid
from apl_guard.policy import Names
from apl_guard.request.canonical import Break, Spelling, canonical, letters_of, spelling

if TYPE_CHECKING:
    import ahocorasick

__all__ = ["Match", "NamesIndex"]

_LEAST_LETTERS = 2
_MOST_LETTERS = 64
_LEAST_LETTERS_JOINED = 8
"""Below, a name written as one word is mostly another word: Li Ke and like."""


@dataclass(frozen=True)
class Match:
    """A name in a text."""

    names: Names
    """The list that it is on."""
    start: int
    end: int
    neutral: str


class NamesIndex:
    """Names, by how they are spelt. See `apl_guard.request.canonical.spelling` for what does not count.

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
            for person in names.listed:
                for name in (person.name, *person.aliases):
                    self._add(name, number, person.neutral, names)
        if self._list_of:
            self._automaton.make_automaton()

    def _add(self, name: str, number: int, neutral: str, names: Names) -> None:
        spelt = spelling(canonical(name))
        if not _LEAST_LETTERS <= len(spelt.letters) <= _MOST_LETTERS:
            raise PolicyInvalid(
                f"a name of {len(spelt.letters)} letters; expected {_LEAST_LETTERS} to {_MOST_LETTERS}",
                where=names.file or f"names '{names.id}'",
            )
        new = len(self._list_of)
        self._list_of.append(number)
        self._words.append(sum(1 << place for place, gap in enumerate(spelt.breaks) if gap))
        self._lengths.append(len(spelt.letters))
        self._neutral.append(neutral)
        known = self._automaton.get(spelt.letters, None)
        if known is None:
            self._automaton.add_word(spelt.letters, new)
        else:
            self._same.setdefault(known, []).append(new)

    def find(self, text: str) -> list[Match]:
        """Every name in a canonical text, also where names overlap."""
        # Most texts hold no name, and where their letters come from is then of no interest.
        if not self._list_of or next(self._automaton.iter(letters_of(text)), None) is None:
            return []
        return list(self._find(spelling(text)))

    def _find(self, spelt: Spelling) -> Iterator[Match]:
        for last, number in self._automaton.iter(spelt.letters):
            start, end = last + 1 - self._lengths[number], last + 1
            for each in (number, *self._same.get(number, ())):
                if _is_name(spelt, start, end, self._words[each]):
                    yield Match(
                        self._lists[self._list_of[each]],
                        spelt.places[start],
                        spelt.places[last] + 1,
                        self._neutral[each],
                    )


def _is_name(spelt: Spelling, start: int, end: int, words: int) -> bool:
    """Whether letters that spell a name are that name, and not a part of other words."""
    if not (spelt.starts_word(start) and spelt.starts_word(end)):
        return False
    inner = range(start + 1, end)
    is_long = end - start >= _LEAST_LETTERS_JOINED
    for place in inner:
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


def _new_automaton() -> ahocorasick.Automaton:
    try:
        import ahocorasick
    except ImportError as error:
        raise ExtraMissing("names", needs="pyahocorasick") from error
    return ahocorasick.Automaton(ahocorasick.STORE_INTS)
