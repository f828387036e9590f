"""The prefix of this project as one of the peers, and the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from apl_guard.guard import Guard
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.trainer.peers.peer import Applied, Files, Task
from apl_guard.trainer.peers.text_level import policy_file

_SOURCE = "Shi, Zhang and Shan, arXiv:2405.16895"


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
class Always:
    """The prefix in front of every prompt: whoever is named, on a list or not."""

    prefix: Prefix
    seconds: float | None = None
    """What its training took, where that is known."""
    key: ClassVar[str] = "APL"
    source: ClassVar[str] = _SOURCE

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which prefix."""
        return {"prefix": self.prefix.digest[:12], "vectors": self.prefix.n}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Nothing: the prefix was trained beforehand."""
        return {"prefix.safetensors": self.prefix.to_bytes()}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The guard with its default policy."""
        return Applied(
            Guard(
                pipe, policy="anonymize_faces", prefix=Prefix.parse(files["prefix.safetensors"], "prefix.safetensors")
            )
        )


@dataclass(frozen=True)
class Listed:
    """The prefix in front of those prompts that name somebody on the list: the gated mode, as erasers are measured."""

    prefix: Prefix
    seconds: float | None = None
    """What its training took, where that is known."""
    key: ClassVar[str] = "APL, listed"
    source: ClassVar[str] = _SOURCE

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which prefix."""
        return {"prefix": self.prefix.digest[:12], "vectors": self.prefix.n}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Write the list."""
        return {"prefix.safetensors": self.prefix.to_bytes(), "policy.yaml": policy_file("anonymize", task.names)}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The guard with a policy that anonymizes prompts with listed names."""
        prefix = Prefix.parse(files["prefix.safetensors"], "prefix.safetensors")
        return Applied(Guard(pipe, policy=Policy.parse(files["policy.yaml"]), prefix=prefix))
