"""A record on one line of a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["counted", "line_of", "named", "plain"]


def line_of(row: dict[str, Any]) -> str:
    """What a record says, in short."""
    parts = [row["timestamp"], row["event"], row.get("decision_id", row.get("guard"))]
    if str(row["event"]).startswith("policy."):
        parts += [named(row.get("policy")), _change(row)]
    else:
        parts.append((row.get("policy") or {}).get("name"))
    protection = f"protection {row['protection']}" if row.get("protection") is not None else None
    parts += [_action(row), row.get("result"), protection, row.get("error"), row.get("tenant"), _led_to(row)]
    return "  ".join(plain(part) for part in parts if part is not None)


def _action(row: Mapping[str, Any]) -> Any:
    """What the policy said, and whether that was done."""
    action = row.get("action")
    if action == row.get("effective_action", action):
        return action
    mode = (row.get("policy") or {}).get("mode")
    return f"{action} (not done: {'outside of the rollout' if mode == 'enforce' else mode})"


def _led_to(row: Mapping[str, Any]) -> str | None:
    """What led to the action of a decision: rules by their ids, and what decided without one or besides."""
    led = [reason for reason in row.get("reasons", ()) if reason.get("action") == row.get("action")]
    found = {": ".join(str(reason[name]) for name in ("rule", "why") if reason.get(name)) for reason in led}
    return f"by {'; '.join(sorted(found))}" if found else None


def named(policy: Any) -> str | None:
    """A policy of a record, with what tells it apart."""
    if not isinstance(policy, Mapping):
        return None
    return f"{policy.get('name')} version {policy.get('version')} {policy.get('mode')} {str(policy.get('digest'))[:12]}"


def _change(row: dict[str, Any]) -> str | None:
    for name, word in (("before", "instead of"), ("refused", "refused")):
        if described := named(row.get(name)):
            return f"{word} {described}"
    return None


def counted(row: dict[str, Any]) -> str:
    """A group, with its number in front."""
    *values, count = row.values()
    return f"{count:>10}  " + "  ".join("–" if value is None else plain(value) for value in values)


def plain(value: Any) -> str:
    """A value as it may stand on a terminal: no control characters, nothing that changes direction."""
    text = str(value)
    return text if text.isascii() and text.isprintable() else json.dumps(text)
