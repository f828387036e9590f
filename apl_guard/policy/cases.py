"""The tests that stand in a policy."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from apl_guard.policy.words import Action, Id, Part
from apl_guard.request import Channel

__all__ = ["Case", "Expect", "Given"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters; no call can be made for another")
    return text


_Caller = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]


class Given(Part):
    """The request of a test."""

    prompt: str | None = None
    negative_prompt: str | None = None
    channels: tuple[Channel, ...] = ()
    """Channels that it uses beside those of its texts."""
    tenant: _Caller | None = None
    route: _Caller | None = None
    model: Annotated[str, Field(max_length=200)] = "test:Pipe"
    """The backend, as `when: {models: …}` sees it."""
    carries_prefix: bool = True
    """Whether a prefix can reach the backend."""


class Expect(Part):
    """What a test wants decided, whatever mode and rollout are."""

    action: Action
    rule: Id | None = None
    """One of the rules that decide about a channel."""
    category: Id | None = None
    prompt: str | None = None
    """The prompt that runs."""


class Case(Part):
    """A test of a policy, which it must pass before it comes into force."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    given: Given
    expect: Expect
