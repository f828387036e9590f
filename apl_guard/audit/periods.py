"""Which policy was in force when, as the log says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apl_guard.audit.reading import read_log

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

    def covers(self, moment: str) -> bool:
        """Whether a time, as it stands in records, lies in it."""
        return self.since <= moment and (self.until is None or moment < self.until)


def periods(folder: Path) -> list[Period]:
    """Every period of a log, the earliest first.

    Raises:
        InvalidInput: The folder holds no log.
    """
    found: list[Period] = []
    running: dict[str, Period] = {}
    writers: dict[str, str] = {}
    for each in read_log(folder, containing=b'"event":"policy.'):
        fields = each.fields
        if fields["event"] not in ("policy.in_force", "policy.reloaded"):
            continue
        guard, since = str(fields.get("guard")), str(fields["timestamp"])
        if guard in running:
            found.append(replace(running.pop(guard), until=since, end="replaced"))
        policy = fields.get("policy")
        running[guard] = Period(guard, str(fields.get("backend")), policy if isinstance(policy, Mapping) else {}, since)
        writers[guard] = each.record.writer
    ends = _ends(folder)
    for guard, period in running.items():
        until, end = ends.get(writers[guard], (None, "open"))
        found.append(replace(period, until=until, end=end))
    return sorted(found, key=lambda period: (period.since, period.guard))


def _ends(folder: Path) -> dict[str, tuple[str | None, str]]:
    """Writer → when and how it ended."""
    ends: dict[str, tuple[str | None, str]] = {}
    for each in read_log(folder, containing=b'"event":"audit.'):
        fields = each.fields
        if fields["event"] == "audit.close":
            ends[each.record.writer] = (str(fields["timestamp"]), "closed")
        elif fields["event"] == "audit.recovery":
            ends.setdefault(str(fields.get("dead_writer")), (None, "died"))
    return ends
