"""What a peer is: it learns from a model and a list of people, and what it learned acts on any model of the kind.

Nothing is measured but what is shipped: a peer's files are all that `apply` gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.data.identities import Identities

Files = dict[str, bytes]
"""What has to be shipped beside the model: file name → content."""


@dataclass(frozen=True)
class Task:
    """Whom to hide and what to leave alone: the same for every peer.

    Example:
        >>> people = Identities.model_validate(
        ...     {"identities": [{"name": "Mara Voss", "neutral": {"coarse": "a woman"}}]})
        >>> Task(people, generic=("a red car",)).names
        {'Mara Voss': 'a woman'}
    """

    people: Identities
    """Names, what stands in for each, and templates."""
    generic: tuple[str, ...]
    """Prompts that name nobody."""
    neutral: NeutralKind = "coarse"
    """What the text that stands in for a name keeps of the person."""
    seed: int = 0

    @property
    def names(self) -> dict[str, str]:
        """Name → what stands in for it.

        Raises:
            IdentitiesInvalid: A neutral text is missing.
        """
        return {one.name: self.people.neutral(k, self.neutral) for k, one in enumerate(self.people.identities)}


def refuse_nothing(text: str) -> bool:
    """What peers that always draw say of every prompt."""
    return False


@dataclass(frozen=True)
class Applied:
    """A model with a peer at work on it. The model itself is as it was."""

    call: Callable[..., Any]
    """Is called as the pipe is, with a list of prompts. A picture that is refused is black."""
    refuses: Callable[[str], bool] = refuse_nothing
    """Whether there is no picture for a prompt."""


class Peer(Protocol):
    """One way to keep a model from drawing people."""

    @property
    def key(self) -> str:
        """Its name in files and tables."""

    @property
    def source(self) -> str:
        """Where it was published."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its options, as they stand in the table: equal settings on an equal task give equal files."""

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Do whatever has to be done once, and leave the pipe as it was."""

    def apply(self, pipe: Any, files: Files) -> Applied:
        """Put what was learned to work on a model: that one, or another that has the same text encoder."""
