"""A policy as a whole: the file, its name, its digest."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from apl_guard.errors import PolicyInvalid
from apl_guard.policy.cases import Case
from apl_guard.policy.names_file import names_folder, read_names
from apl_guard.policy.problems import describe, did_you_mean
from apl_guard.policy.schema import Api, Kind, Metadata, Rule, Spec
from apl_guard.policy.words import Mode, Verb
from apl_guard.policy.yaml_tree import MAX_BYTES, read_tree
from apl_guard.storage import read_regular

__all__ = ["Policy", "built_in_policies", "named_files", "policy_files"]


class Policy(BaseModel):
    """What may be generated, and how. See docs/policies.md for the language.

    Example:
        >>> policy = Policy.load("anonymize_faces")
        >>> policy.mode.value, policy.rules[0].then.action.value
        ('enforce', 'anonymize')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="apl-guard policy", use_attribute_docstrings=True)

    apiVersion: Api  # noqa: N815 - as Kubernetes spells it
    kind: Kind
    metadata: Metadata
    spec: Spec
    tests: Annotated[tuple[Case, ...], Field(max_length=1000)] = ()
    """What it must decide about some requests before it comes into force."""

    @field_validator("tests")
    @classmethod
    def _names_differ(cls, tests: tuple[Case, ...]) -> tuple[Case, ...]:
        if len({case.name for case in tests}) != len(tests):
            raise ValueError("two have the same name")
        return tests

    @property
    def name(self) -> str:
        """What it is called."""
        return self.metadata.name

    @property
    def version(self) -> int:
        """Counted up by its owner."""
        return self.metadata.version

    @property
    def mode(self) -> Mode:
        """Whether its decisions are carried out."""
        return self.spec.mode

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rules."""
        return self.spec.rules

    @property
    def prefixes(self) -> frozenset[str | None]:
        """The names of the prefixes that it asks for; None among them for the one that fits the text encoder."""
        return frozenset(rule.then.prefix for rule in self.rules if rule.then.action == Verb.ANONYMIZE)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, in hex. Comments and order of keys do not count."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"apl-guard policy 2\0" + content.encode()).hexdigest()

    def in_mode(self, mode: Mode | str) -> Policy:
        """The same policy in another mode.

        Raises:
            ValueError: There is no such mode.

        Example:
            >>> Policy.load("anonymize_faces").in_mode("shadow").mode
            <Mode.SHADOW: 'shadow'>
        """
        return self.model_copy(update={"spec": self.spec.model_copy(update={"mode": Mode(mode)})})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, and with their digest."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> Policy:
        """Read a policy.

        Args:
            path_or_name: A YAML file, or the name of a built-in policy.

        Raises:
            PolicyInvalid: There is none, or it says something impossible. The message holds path, line and field.
        """
        if not isinstance(path_or_name, str | os.PathLike):
            raise PolicyInvalid(
                f"found {type(path_or_name).__name__}; expected a policy, a file, or the name of a built-in one; "
                "Policy.model_validate(DICT) makes a policy of a dict",
                where="policy",
            )
        try:
            path = _path(path_or_name)
            content = read_regular(path, MAX_BYTES)
        except (OSError, TypeError, ValueError) as error:
            names = ", ".join(built_in_policies()) + did_you_mean(str(path_or_name), built_in_policies())
            reason = getattr(error, "strerror", None) or "not a path"
            raise PolicyInvalid(
                f"cannot be read ({reason}); expected a file or one of: {names}", where=repr(str(path_or_name))
            ) from error
        return cls.parse(content, where=path).with_files(_folder(path_or_name))

    def with_files(self, folder: Path) -> Policy:
        """The policy with the content of the files that it names.

        Args:
            folder: Where they are.

        Raises:
            PolicyInvalid: One is missing or damaged.
        """
        read = tuple(names if names.file is None else read_names(names, folder) for names in self.spec.names)
        person = self.spec.person.seen_from(folder) if self.spec.person is not None else None
        return self.model_copy(update={"spec": self.spec.model_copy(update={"names": read, "person": person})})

    @classmethod
    def parse(cls, content: bytes, where: str | Path = "policy") -> Policy:
        """Make a policy of the bytes of a file, of any origin. Files that it names are not read.

        Args:
            content: The bytes.
            where: What to call them in messages.

        Raises:
            PolicyInvalid: They are no policy. The message holds line and field.
        """
        tree = read_tree(content, where)
        try:
            return cls.model_validate(tree.root)
        except ValidationError as error:
            raise PolicyInvalid(describe(error, cls, tree), where=where) from None


def policy_files(path_or_name: str | os.PathLike[str], policy: Policy) -> list[Path]:
    """The files that a policy was read from: its own, then those of its lists."""
    folder = _folder(path_or_name)
    return [_path(path_or_name), *(folder / names.file for names in policy.spec.names if names.file is not None)]


def named_files(path_or_name: str | os.PathLike[str]) -> list[Path]:
    """The lists that a policy file names, also where the policy cannot be used; none where it cannot be read."""
    try:
        path = _path(path_or_name)
        return policy_files(path_or_name, Policy.parse(read_regular(path, MAX_BYTES), where=path))[1:]
    except (OSError, ValueError, PolicyInvalid):
        return []


def _path(path_or_name: str | os.PathLike[str]) -> Path:
    return built_in_policies().get(str(path_or_name)) or Path(path_or_name)


def _folder(path_or_name: str | os.PathLike[str]) -> Path:
    """Where the lists of a policy are: beside it, or where the platform keeps those of built-in policies."""
    return names_folder() if str(path_or_name) in built_in_policies() else Path(path_or_name).parent


def built_in_policies() -> dict[str, Path]:
    """Name → file of each built-in policy.

    Example:
        >>> "anonymize_faces" in built_in_policies()
        True
    """
    spec = importlib.util.find_spec("apl_guard.policies")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    return {file.stem: file for root in roots for file in sorted(Path(root).glob("*.yaml"))}
