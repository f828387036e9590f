"""What a backend makes of a text before it draws it, such as the text without the weights of its words."""

from __future__ import annotations

from collections.abc import Sequence
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
