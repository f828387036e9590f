"""What a backend makes of a text before it draws it, such as the text without the weights of its words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Reading"]


class Reading(NamedTuple):
    """Another form of a text, in which what a policy asks about is looked for as well."""

    text: str
    places: Sequence[int] | None = None
    """For each character, the one of the text that it comes from; None where nobody can say."""

    def span(self, start: int, end: int, whole: int) -> tuple[int, int]:
        """Which part of the text a part of this reading comes from.

        Args:
            start: Its first character.
            end: One past its last.
            whole: The number of characters of the text, all of which count where the places are not known.

        Example:
            >>> Reading("cat", (1, 2, 7)).span(1, 3, 9), Reading("cat").span(1, 3, 9)
            ((2, 8), (0, 9))
        """
        if self.places is None:
            return 0, whole
        return self.places[start], self.places[end - 1] + 1

    def replacing(self, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Reading:
        """This reading, whose places are known, with what matches replaced.

        Args:
            pattern: What is replaced.
            new: Says by what.

        Example:
            >>> Reading("a-cat", (0, 1, 2, 3, 4)).replacing(re.compile("-c"), lambda _: " k")
            Reading(text='a kat', places=(0, 1, 2, 3, 4))
        """
        text, places = self.text, self.places
        assert places is not None
        parts: list[str] = []
        comes_from: list[int] = []
        done = 0
        for found in pattern.finditer(text):
            start, end = found.span()
            put = new(found)
            parts += [text[done:start], put]
            comes_from += places[done:start]
            # The last letter stands for all that is left, so that nothing of it stays where a name is replaced.
            comes_from += [places[start]] * (len(put) - 1) + [places[end - 1]] * bool(put)
            done = end
        if not parts:
            return self
        return Reading("".join([*parts, text[done:]]), (*comes_from, *places[done:]))
