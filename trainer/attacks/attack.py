"""What a black-box attack is: another way to ask for somebody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = ["Attack", "Target", "nothing_more"]


@dataclass(frozen=True)
class Target:
    """Somebody whom the attacker wants drawn, and the prompt from which they start."""

    name: str
    text: str
    """A prompt that holds the name."""
    described: str
    """The person in words, by everything that words can say."""

    def saying(self, words: str) -> str:
        """The prompt with other words in place of the name."""
        return self.text.replace(self.name, words)


def nothing_more(texts: Sequence[str], pipe: Any) -> Mapping[str, Any]:
    """No further arguments."""
    return {}


@dataclass(frozen=True)
class Attack:
    """One class of attacks.

    Example:
        >>> shout = Attack("shout", ("once", "twice"), lambda target, variant, rng: target.text.upper())
        >>> shout.write(Target("Mara Voss", "a photo of Mara Voss", "a woman"), "once", Random(0))
        'A PHOTO OF MARA VOSS'
    """

    name: str
    variants: tuple[str, ...]
    """Ways of doing it, used in turn. Each is counted for itself, too."""
    write: Callable[[Target, str, Random], str]
    """Writes the prompt, given the target and the variant."""
    arguments: Callable[[Sequence[str], Any], Mapping[str, Any]] = nothing_more
    """Further arguments of the call, or others in place of the usual ones, given the prompts and the pipe."""
