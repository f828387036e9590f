"""A policy: which channels a request may use, and what happens to what comes through them.

A policy is a YAML file of rules. Each rule names channels and an action. Where several rules name a channel
the strictest action counts, and a channel that no rule names is blocked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from apl_guard.errors import PolicyInvalid
from apl_guard.request import Channel

__all__ = ["Action", "Mode", "Policy", "Rule"]

_MAX_BYTES = 1 << 20
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class Action(StrEnum):
    """What happens to a request, or to what comes through one channel of it; the strictest last."""

    ALLOW = "allow"
    ANONYMIZE = "anonymize"
    """Put the prefix in front."""
    BLOCK = "block"

    @property
    def strictness(self) -> int:
        """The place of this action in the order from lenient to strict."""
        return list(Action).index(self)


class Mode(StrEnum):
    """Whether decisions are carried out."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    """Decide and record, but let every request pass unchanged."""
    OFF = "off"
    """Allow everything. It is still recorded."""


class Rule(BaseModel):
    """One entry of a policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: _Name
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    action: Action

    @model_validator(mode="after")
    def _prefix_needs_a_prompt(self) -> Rule:
        others = [channel.value for channel in self.channels if channel != Channel.PROMPT]
        if self.action == Action.ANONYMIZE and others:
            raise ValueError(f"a prefix protects the channel 'prompt' only; {others} can be allowed or blocked")
        return self


class Policy(BaseModel):
    """What may be generated, and how.

    Example:
        >>> policy = Policy.load("anonymize_faces")
        >>> policy.mode.value, policy.rules[0].action.value
        ('enforce', 'anonymize')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api: Literal["apl-guard/v1"] = "apl-guard/v1"
    """Version of the policy language."""
    name: _Name
    version: Annotated[int, Field(ge=1)]
    """Counted up by the owner of the policy on each change."""
    description: str = ""
    mode: Mode = Mode.ENFORCE
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    @field_validator("rules")
    @classmethod
    def _ids_differ(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        ids = [rule.id for rule in rules]
        if len(set(ids)) != len(ids):
            raise ValueError("two rules have the same id")
        return rules

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex. Comments and order of keys do not count."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"apl-guard policy 1\0" + content.encode()).hexdigest()

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> Policy:
        """Read a policy.

        Args:
            path_or_name: A YAML file, or the name of a built-in policy.

        Raises:
            PolicyInvalid: There is none, or it says something impossible. The message holds path and field.
        """
        built_in = built_in_policies().get(str(path_or_name))
        path = Path(path_or_name) if built_in is None else built_in
        try:
            content = path.read_bytes()
        except OSError as error:
            names = ", ".join(built_in_policies())
            raise PolicyInvalid(
                f"cannot be read ({error.strerror}); expected a file or one of: {names}", where=path
            ) from error
        if len(content) > _MAX_BYTES:
            raise PolicyInvalid(f"larger than {_MAX_BYTES} bytes; not a policy", where=path)
        return cls._parse(content, where=path)

    @classmethod
    def _parse(cls, content: bytes, where: Path) -> Policy:
        try:
            found = yaml.load(content, _UniqueKeyLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            place = "" if line is None else f" in line {line + 1}"
            raise PolicyInvalid(
                f"not valid YAML{place}: {getattr(error, 'problem', 'unreadable')}", where=where
            ) from error
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "policy"
            raise PolicyInvalid(f"field '{field}': {first['msg']}", where=where) from error


def built_in_policies() -> dict[str, Path]:
    """Name → file of each built-in policy.

    Example:
        >>> sorted(built_in_policies())
        ['anonymize_faces', 'unsafe_allow_all']
    """
    spec = importlib.util.find_spec("apl_guard.policies")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    return {file.stem: file for root in roots for file in sorted(Path(root).glob("*.yaml"))}


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that appears twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        return mapping
