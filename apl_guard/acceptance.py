"""Which prefixes a policy accepts. It stands in the policy, so it is versioned and recorded with it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Acceptance", "Match"]


class Match(StrEnum):
    """How close the text encoder in a pipe must be to the one that a prefix was trained with."""

    EXACT = "exact"
    """Equal weights and tokenizer."""
    COMPATIBLE = "compatible"
    """Or a copy in bfloat16, with tokens added, or fine-tuned so slightly that it answers the same."""


class Acceptance(BaseModel):
    """Which prefixes are good enough.

    Example:
        >>> Acceptance(slots=("text_encoder",)).lacking({"text_encoder"}, {"text_encoder", "text_encoder_2"})
        set()
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Match = Match.EXACT
    """How close the text encoders must be."""
    slots: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The slots that suffice. None asks for every text encoder that carries the prompt."""

    def lacking(self, has: Iterable[str], carries: Iterable[str]) -> set[str]:
        """The slots that a prefix should have and has not.

        Args:
            has: The slots of the prefix.
            carries: The slots of the pipe, each of which carries the prompt.
        """
        wanted = set(carries) if self.slots is None else set(self.slots)
        return wanted - set(has)
