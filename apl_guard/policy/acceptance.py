"""Which prefixes a policy accepts. It stands in the policy, so it is versioned and recorded with it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from apl_guard.encoder.fingerprint import Sha256

__all__ = ["Acceptance", "Match"]


class Match(StrEnum):
    """How close the text encoder in a pipe must be to the one that a prefix was trained with."""

    EXACT = "exact"
    """Equal weights and tokenizer."""
    COMPATIBLE = "compatible"
    """Or a copy in bfloat16, with tokens added, or fine-tuned so slightly that it answers the same."""


def _check_public_key(text: str) -> str:
    lines = text.strip().splitlines()
    if len(text) > 10_000 or len(lines) < 3:
        raise ValueError("expected a public key in PEM")
    if (lines[0], lines[-1]) != ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"):
        raise ValueError("expected a public key in PEM, from the line BEGIN PUBLIC KEY to END PUBLIC KEY")
    base64.b64decode("".join(lines[1:-1]), validate=True)
    return text


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

    digests: tuple[Sha256, ...] = ()
    """Digests of the prefixes that may be used; empty for any."""
    signers: tuple[Annotated[str, AfterValidator(_check_public_key)], ...] = ()
    """Public keys in PEM, one of which must have signed the prefix; empty asks for no signature."""

    def lacking(self, has: Iterable[str], carries: Iterable[str]) -> set[str]:
        """The slots that a prefix should have and has not.

        Args:
            has: The slots of the prefix.
            carries: The slots of the pipe, each of which carries the prompt.
        """
        wanted = set(carries) if self.slots is None else set(self.slots)
        return wanted - set(has)
