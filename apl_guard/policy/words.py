"""The words of the policy language: what actions, modes, keys and kinds are called.

What switches protection off is spelt `unsafe_…`, so that it stands out where it is written and can be found in every
record.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DEFAULT_SCORE",
    "NO_TEXT",
    "Action",
    "Entity",
    "Glob",
    "Id",
    "Mode",
    "OnError",
    "Part",
    "Role",
    "ShareKey",
    "Verb",
    "WithoutPrefix",
]

DEFAULT_SCORE = 0.5
"""How sure a detector must be, unless a rule says otherwise."""

NO_TEXT = "half of a surrogate pair is no text"
"""Why a text is refused that no encoder could take."""

Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
"""How policies, rules, lists and categories are named."""


Glob = Annotated[str, Field(min_length=1, max_length=200)]
"""A name, in which `*` stands for any characters."""


class Action(StrEnum):
    """What happens to a request, or to what comes through one channel of it; the strictest last."""

    ALLOW = "allow"
    ANONYMIZE = "anonymize"
    """Put the prefix in front."""
    REWRITE = "rewrite"
    """Replace each name by its neutral description."""
    BLOCK = "block"

    @property
    def strictness(self) -> int:
        """The place of this action in the order from lenient to strict."""
        return _STRICTNESS[self]


_STRICTNESS = {action: place for place, action in enumerate(Action)}


class Verb(StrEnum):
    """How a rule spells its action."""

    ALLOW = "allow"
    UNSAFE_ALLOW = "unsafe_allow"
    """Allow what no prefix protects. Logged on each use."""
    ANONYMIZE = "anonymize"
    REWRITE = "rewrite"
    BLOCK = "block"

    @property
    def action(self) -> Action:
        """What it does."""
        return Action.ALLOW if self == Verb.UNSAFE_ALLOW else Action(self.value)


class Mode(StrEnum):
    """Whether decisions are carried out."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    """Decide and record, but let every request pass unchanged."""
    OFF = "unsafe_off"
    """Allow everything. It is still recorded, and logged on each call."""


class OnError(StrEnum):
    """What happens where a detector fails, or the prefix cannot be found."""

    BLOCK = "block"
    """No image."""
    FALLBACK = "fallback"
    """A detector that fails: the prefix in front of every prompt, whatever it says. No prefix: no image."""
    PASSTHROUGH = "unsafe_passthrough"
    """Go on as if the detector had found nothing, and without a prefix. Logged on each use."""


class WithoutPrefix(StrEnum):
    """What becomes of `anonymize` where the backend takes text alone, so that no prefix can reach it."""

    BLOCK = "block"
    REWRITE = "rewrite"
    """Replace every name found, of all lists, detectors and patterns. A name that is not found stays."""


class ShareKey(StrEnum):
    """What is hashed to say whether a request belongs to a share."""

    REQUEST = "request"
    """Each request is drawn anew."""
    TENANT = "tenant"
    """All requests of a tenant go the same way."""
    PROMPT = "prompt"
    """Equal prompts go the same way."""


class Role(StrEnum):
    """What it means to be on a list of names."""

    PROTECTED = "protected"
    """Rules ask whether somebody on the list is named."""
    CONSENTING = "consenting"
    """Whoever is on it may be drawn: a person that a detector sees and that is on it counts as not seen."""


class Entity(StrEnum):
    """What a detector can see in a text."""

    PERSON = "person"


class Part(BaseModel):
    """A mapping in a policy file. It is frozen and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
