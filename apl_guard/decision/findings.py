"""What was seen in the texts of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.request import Channel

__all__ = ["Finding", "Findings"]


class Finding(BaseModel):
    """One thing that was seen: where, by what, how surely. Never the text itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """What saw it: `names.LIST`, `entity.person` or `pattern.NAME`, as the policy calls it."""
    channel: Channel
    text: int
    """Which text of the channel, counted from 0."""
    start: int
    """First character, in the canonical text."""
    end: int
    """One past the last character."""
    score: float = 1.0
    """How sure the source is, in [0, 1]."""
    neutral: str = Field(default="", repr=False, exclude=True)
    """What `rewrite` puts in its place."""


@dataclass(frozen=True)
class Findings:
    """What was seen in a request, and which sources looked."""

    found: tuple[Finding, ...] = ()
    looked: frozenset[str] = frozenset()
    """The sources that looked at every text."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Source → type of the error, of those that could not."""
    texts: Mapping[Channel, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """The canonical texts that were looked at. The same texts run."""
