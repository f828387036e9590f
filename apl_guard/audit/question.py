"""Questions to the log, and how SQLite is asked them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.policy.problems import did_you_mean

__all__ = ["COLUMNS", "Question"]

COLUMNS = {
    "timestamp": "$.timestamp",
    "event": "$.event",
    "decision_id": "$.decision_id",
    "policy": "$.policy.name",
    "policy_version": "$.policy.version",
    "policy_digest": "$.policy.digest",
    "mode": "$.policy.mode",
    "tenant": "$.tenant",
    "route": "$.route",
    "subject": "$.subject",
    "backend": "$.backend",
    "action": "$.action",
    "effective_action": "$.effective_action",
    "category": "$.category",
    "rules": "$.rules",
    "result": "$.result",
    "error": "$.error",
    "prefix": "$.prefix",
    "prefix_digest": "$.prefix_digest",
    "images": "$.images",
    "protection": "$.protection",
    "overhead_ms": "$.overhead_ms",
    "generation_ms": "$.generation_ms",
}
"""Column → where its value is in a record. These can be asked for and grouped by."""

_DECIDED = frozenset(
    [
        *("policy", "policy_version", "policy_digest", "mode", "tenant", "route", "subject", "backend", "action"),
        *("effective_action", "category", "rules"),
    ]
)
"""What stands in the record of a decision,"""
_DONE = frozenset(
    ["result", "error", "prefix", "prefix_digest", "images", "protection", "overhead_ms", "generation_ms"]
)
"""and what in that of its outcome."""
_DECISION, _OUTCOME = "guard.decision", "guard.outcome"
_ITS_DECISION = f"FROM records AS d WHERE d.decision_id = records.decision_id AND d.event = '{_DECISION}'"


@dataclass(frozen=True)
class Question:
    """What to look for."""

    where: Mapping[str, str | int | float]
    """Column → value that it has. A text that reads as a number stands for the number, too; an empty one for none, in
    the records of calls that could have one."""
    since: str | None = None
    """Timestamps from here on,"""
    until: str | None = None
    """up to here, this one left out."""
    group_by: Sequence[str] = ()
    """Count by these columns rather than list."""
    limit: int = 100
    containing: Sequence[Sequence[str]] | None = None
    """Digests: of each list, one has to stand in the record."""
    image: str | None = None
    """Digest of an image that the call released."""

    def to_sql(self) -> tuple[str, list[Any]]:
        """The query and its values: lines, the newest first; or groups with their number, the largest first.

        Raises:
            InvalidInput: There is no such column, or no record can have such a value.

        Example:
            >>> Question({"action": "block"}, limit=3).to_sql()
            ('SELECT line FROM records WHERE "action" IN (?) ORDER BY timestamp DESC, writer, seq DESC LIMIT ?',
             ['block', 3])
        """
        for name in [*self.where, *self.group_by]:
            if name not in COLUMNS:
                hint = did_you_mean(name, COLUMNS)
                raise InvalidInput(
                    f"there is no column {name[:40]!r}; there are: {', '.join(COLUMNS)}{hint}", where="query"
                )
        asked = {*self.where, *self.group_by}
        is_done = bool(asked & _DONE) or self.where.get("event") == _OUTCOME or self.image is not None
        is_of_both = is_done and bool(asked & _DECIDED or self.containing)
        # What was done is on record without what was decided, which stands in another record of the same call.
        place = {name: _of_the_call(name) if is_of_both and name in _DECIDED else f'"{name}"' for name in asked}
        conditions = [f"event IN ('{_OUTCOME}', 'guard.refusal')"] if is_of_both else []
        values: list[Any] = []
        for name, value in self.where.items():
            if value == "":
                conditions.append(f"coalesce({place[name]}, '') = ''")
                if not is_of_both and name in _DECIDED | _DONE:
                    conditions.append(f"event IN ('{_OUTCOME if name in _DONE else _DECISION}', 'guard.refusal')")
                continue
            if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise InvalidInput(f"found {value[:40]!a}; no record has half of a surrogate pair here", where=name)
            same = [value, *_as_number(value)]
            conditions.append(f"{place[name]} IN ({', '.join('?' * len(same))})")
            values += same
        for digests in self.containing or ():
            found = f"({' OR '.join(['instr(d.line, ?)' if is_of_both else 'instr(line, ?)'] * len(digests))})"
            conditions.append(f"EXISTS (SELECT 1 {_ITS_DECISION} AND {found})" if is_of_both else found)
            values += digests
        if self.image is not None:
            conditions.append(f"event = '{_OUTCOME}' AND instr(line, ?)")
            values.append(f'"{self.image}"')
        for condition, moment in (("timestamp >= ?", self.since), ("timestamp < ?", self.until)):
            if moment is not None:
                conditions.append(condition)
                values.append(moment)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if self.group_by:
            names = ", ".join(place[name] for name in self.group_by)
            places = ", ".join(str(number) for number in range(1, len(self.group_by) + 1))
            groups = f"GROUP BY {places} ORDER BY count(*) DESC, {places} LIMIT ?"
            return f"SELECT {names}, count(*) FROM records{where} {groups}", [*values, self.limit]
        order = "ORDER BY timestamp DESC, writer, seq DESC LIMIT ?"
        return f"SELECT line FROM records{where} {order}", [*values, self.limit]


def _of_the_call(name: str) -> str:
    """What the record says itself, or else that of its decision."""
    return f'coalesce(records."{name}", (SELECT d."{name}" {_ITS_DECISION}))'


def _as_number(value: str | int | float) -> list[float]:
    """The number that a text reads as. In a record, a version is one, and the name of a tenant may look like one."""
    try:
        return [float(value)] if isinstance(value, str) and value.isascii() else []
    except ValueError:
        return []
