"""Times as they are given on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from apl_guard.errors import InvalidInput

__all__ = ["Since", "Until", "moment_of", "moments_of"]

Since = Annotated[
    str | None,
    typer.Option(help="From this time on: 2026-11-01, 2026-11-01T12:00, both in UTC, or 90m, 24h, 7d ago."),
]
Until = Annotated[
    str | None, typer.Option(help="Up to this time, in the same forms. A date is its beginning: that day is left out.")
]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment_of(given: str | None, option: str = "--since") -> str | None:
    """A time as it stands in records."""
    from apl_guard.audit.checkpoint import timestamp_of

    if given is None:
        return None
    try:
        if given[-1:] in _UNITS and given[:-1].isdecimal():
            moment = datetime.now(UTC) - timedelta(**{_UNITS[given[-1]]: int(given[:-1])})
        else:
            moment = datetime.fromisoformat(given)
        return timestamp_of(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"found {given[:40]!r}; expected such as 2026-11-01, 2026-11-01T12:00, 24h or 7d", where=option
        ) from error


def moments_of(since: str | None, until: str | None) -> tuple[str | None, str | None]:
    """The two ends of a time as they stand in records.

    Raises:
        InvalidInput: One is no time, or nothing lies between them.
    """
    first, last = moment_of(since), moment_of(until, "--until")
    if first is not None and last is not None and first >= last:
        raise InvalidInput(f"found {last}, expected a time after --since {first}", where="--until")
    return first, last
