"""For whom and on which way a call comes in: what a policy may ask about and the pipe must not be told.

It travels beside the call, not in its arguments, so the call stays the one that the pipe takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from apl_guard.errors import InvalidInput

__all__ = ["Context", "calling_for", "current_context"]

_MAX_CHARACTERS = 200


@dataclass(frozen=True)
class Context:
    """For whom and on which way a call comes in.

    Raises:
        InvalidInput: A value is no text of at most 200 printable characters.
    """

    tenant: str | None = None
    """The customer, team or application for which the call is made."""
    route: str | None = None
    """The way on which it came in, such as `generate` or `edit`."""
    subject: str | None = None
    """The person or account who asks. Records hold its keyed digest only; policies do not see it."""

    def __post_init__(self) -> None:
        for name in ("tenant", "route", "subject"):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) is not str or not value or len(value) > _MAX_CHARACTERS or not value.isprintable():
                raise InvalidInput(f"expected a text of 1 to {_MAX_CHARACTERS} printable characters", where=name)


_current: ContextVar[Context | None] = ContextVar("apl_guard_context", default=None)
_NOBODY = Context()


def current_context() -> Context:
    """The context of the running thread or task."""
    return _current.get() or _NOBODY


@contextmanager
def calling_for(
    *, tenant: str | None = None, route: str | None = None, subject: str | None = None
) -> Iterator[Context]:
    """Make calls of this thread or task for a tenant, on a route. What is None stays as around it.

    Args:
        tenant: The customer, team or application for which calls are made.
        route: The way on which they came in.
        subject: The person or account who asks.

    Raises:
        InvalidInput: A value is no text of at most 200 printable characters.

    Example:
        >>> with calling_for(tenant="acme"):
        ...     with calling_for(route="edit"):
        ...         print(current_context())
        Context(tenant='acme', route='edit', subject=None)
        >>> current_context()
        Context(tenant=None, route=None, subject=None)
    """
    asked = {"tenant": tenant, "route": route, "subject": subject}
    given = {name: value for name, value in asked.items() if value is not None}
    context = replace(current_context(), **given)
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
