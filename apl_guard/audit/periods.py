"""Which policy was in force when, as the log says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apl_guard.audit.checkpoint import is_set_back
from apl_guard.audit.reading import read_rows
from apl_guard.audit.record import Record

__all__ = ["Period", "periods"]


@dataclass(frozen=True)
class Period:
    """A time in which one policy was in force for one guard."""

    guard: str
    backend: str
    policy: Mapping[str, Any]
    """Name, version, digest, mode and what else the record says."""
    since: str
    until: str | None = None
    """When another policy took its place, or the log was closed. None where it may still be in force, and where the
    process died, of which nobody knows when."""
    end: str = "open"
    """`replaced`, `closed`, `died` or `open`."""

    set_back: tuple[str, str] | None = None
    """Where the clock was set back meanwhile: the earliest and the latest time that its records show."""

    def covers(self, moment: str) -> bool:
        """Whether it may have been in force when the clock showed this time, as it stands in records.

        A clock that was set back shows some times twice, so two policies may cover one.
        """
        if (
            self.set_back is not None
            and self.set_back[0] <= moment
            and (self.until is None or moment <= self.set_back[1])
        ):
            return True
        return self.since <= moment and (self.until is None or moment < self.until)


def periods(folder: Path) -> list[Period]:
    """Every period of a log, the earliest first; those of one guard in the order in which they followed each other.

    Raises:
        InvalidInput: The folder holds no log.
    """
    guards: dict[str, list[Period]] = {}
    writers: dict[str, str] = {}
    """Guard → who writes its records."""
    ends: dict[str, tuple[str | None, str]] = {}
    """Writer → when and how it ended."""
    for row in read_rows(folder):
        before = ""
        for line in row:
            now = line.timestamp
            if is_set_back(before, now):
                _note_set_back(
                    [guards[guard] for guard, writer in writers.items() if writer == row.writer], now, before
                )
            before = now
            if not (line.is_ours or b'"event":"policy.' in line.content):
                continue
            try:
                fields = Record.parse(line.content).fields
            except ValueError as error:
                row.problem = f"record {line.seq}: {error}"
                break
            event = fields["event"]
            if event == "audit.close":
                ends[row.writer] = (str(fields["timestamp"]), "closed")
            elif event == "audit.recovery":
                ends.setdefault(str(fields.get("dead_writer")), (None, "died"))
            elif event in ("policy.in_force", "policy.reloaded"):
                guard, policy = str(fields.get("guard")), fields.get("policy")
                known = guards.setdefault(guard, [])
                if known:
                    known[-1] = _ended(known[-1], now, "replaced")
                known.append(
                    Period(guard, str(fields.get("backend")), policy if isinstance(policy, Mapping) else {}, now)
                )
                writers[guard] = row.writer
    for guard, known in guards.items():
        known[-1] = _ended(known[-1], *ends.get(writers[guard], (None, "open")))
    return sorted((period for known in guards.values() for period in known), key=_order(guards))


def _note_set_back(running: Iterable[list[Period]], now: str, before: str) -> None:
    """Note what times the last period of each guard shows, where its clock was set back."""
    for known in running:
        period = known[-1]
        lowest, highest = period.set_back or (period.since, period.since)
        known[-1] = replace(period, set_back=(min(lowest, now), max(highest, before)))


def _ended(period: Period, until: str | None, end: str) -> Period:
    set_back = period.set_back
    if set_back is not None and until is not None:
        set_back = (min(set_back[0], until), max(set_back[1], until))
    return replace(period, until=until, end=end, set_back=set_back)


def _order(guards: Mapping[str, list[Period]]) -> Callable[[Period], tuple[str, str, int]]:
    """By the time at which they began; none of a guard before the one that it replaced, whatever the clock said."""
    places: dict[int, tuple[str, str, int]] = {}
    for guard, known in guards.items():
        latest = ""
        for number, period in enumerate(known):
            latest = max(latest, period.since)
            places[id(period)] = (latest, guard, number)
    return lambda period: places[id(period)]
