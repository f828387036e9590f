"""The prefix of this project as one of the peers, and the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from apl_guard.guard import Guard
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.trainer.peers.peer import Applied, Files, Task
from apl_guard.trainer.peers.text_level import policy_file

_PREFIX, _POLICY = "prefix.safetensors", "policy.yaml"


@dataclass(frozen=True)
class Plain:
    """Nothing at all: what the others are held against."""

    key: ClassVar[str] = "plain"
    source: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Nothing."""
        return {}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The pipe itself."""
        return Applied(pipe)


@dataclass(frozen=True)
class APL:
    """The guard with a prefix that was trained beforehand.

    Example:
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> prefix = random_prefix(tiny_pipe(), n=4)
        >>> APL(prefix).key, APL(prefix, "listed").key
        ('APL', 'APL, listed')
    """

    prefix: Prefix
    where: Literal["always", "listed"] = "always"
    """In front of every prompt, whoever is named; or of those that name somebody on the list, as erasers are
    measured."""
    seconds: float | None = None
    """What its training took, where that is known."""
    source: ClassVar[str] = "Shi, Zhang and Shan, arXiv:2405.16895"

    @property
    def key(self) -> str:
        """With where it stands."""
        return "APL" if self.where == "always" else "APL, listed"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which prefix."""
        return {"prefix": self.prefix.digest[:12], "vectors": self.prefix.n}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Nothing but the list, where it is needed."""
        files = {_PREFIX: self.prefix.to_bytes()}
        return files if self.where == "always" else files | {_POLICY: policy_file("anonymize", task.names)}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The guard with its default policy, or with one that anonymizes prompts with listed names."""
        policy = "anonymize_faces" if self.where == "always" else Policy.parse(files[_POLICY])
        return Applied(Guard(pipe, policy=policy, prefix=Prefix.parse(files[_PREFIX], _PREFIX)))
