"""The JSON Schema of policy files, for editors and other checkers.

It says all that can be said about one part of a policy. That rules ask for lists that are there, that ids differ and
what else holds between parts, only the reader says.
"""

from __future__ import annotations

from typing import Any

from apl_guard.policy.document import Policy
from apl_guard.policy.words import Verb
from apl_guard.request import PROMPT_CHANNELS, TEXT_CHANNELS, Channel

__all__ = ["json_schema"]


def json_schema() -> dict[str, Any]:
    """What a policy file looks like.

    Example:
        >>> json_schema()["required"]
        ['apiVersion', 'kind', 'metadata', 'spec']
    """
    described: dict[str, Any] = _as_read(Policy.model_json_schema())
    for part, more in _BETWEEN_FIELDS.items():
        described["$defs"][part] |= more
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}


def _as_read(schema: Any) -> Any:
    """The same where a field may be left out, but not be null: to the reader of policies, that is a text.

    And without examples in Python, which say nothing to somebody who writes YAML.
    """
    if isinstance(schema, list):
        return [_as_read(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _as_read(part) for name, part in schema.items() if part is not None}
    if isinstance(about := found.get("description"), str):
        found["description"] = about.split("\n\nExample:")[0]
    if {"type": "null"} in found.get("anyOf", ()):
        (kind,) = (each for each in found.pop("anyOf") if each != {"type": "null"})
        found |= kind
    return found


def _if(condition: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    return {"if": condition, "then": then}


def _with(**fields: Any) -> dict[str, Any]:
    """A mapping that has these fields, and has them so."""
    return {"properties": fields, "required": list(fields)}


def _among(channels: tuple[Channel, ...]) -> dict[str, Any]:
    return {"properties": {"channels": {"items": {"enum": [channel.value for channel in channels]}}}}


_ASKS = {"anyOf": [{"required": [what]} for what in ("names", "patterns", "entities")]}


def _does(*verbs: Verb) -> dict[str, Any]:
    return _with(then=_with(action={"enum": [verb.value for verb in verbs]}))


_BETWEEN_FIELDS: dict[str, dict[str, Any]] = {
    "Names": {
        "oneOf": [{"required": ["people"]}, {"required": ["file"]}],
        "dependentRequired": {"sha256": ["file"]},
    },
    "When": {"dependentRequired": {"min_score": ["entities"]}, **_if(_ASKS, _among(TEXT_CHANNELS))},
    "Then": {
        "allOf": [
            _if({"required": [field]}, _with(action={"const": verb.value}))
            for field, verb in (("prefix", Verb.ANONYMIZE), ("strength", Verb.ANONYMIZE), ("category", Verb.BLOCK))
        ]
    },
    "Rule": {
        "allOf": [
            _if(_does(Verb.ANONYMIZE), {"properties": {"when": _among(PROMPT_CHANNELS)}}),
            _if(_does(Verb.ALLOW, Verb.REWRITE), {"properties": {"when": _among(TEXT_CHANNELS)}}),
            _if(_does(Verb.REWRITE), {"properties": {"when": _ASKS}}),
        ]
    },
}
"""Part of a policy → what holds between its fields."""
