"""Names in the text: refused, or replaced by their neutral text, before the model sees them.

Both are policies of the guard. They know the names on the list as `apl_guard.detect.names` finds them, and nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np

from apl_guard.errors import PolicyBlocked
from apl_guard.guard import Guard
from apl_guard.policy import Action, Policy
from apl_guard.trainer.peers.peer import Applied, Files, Task


def policy_file(action: Literal["block", "rewrite", "anonymize"], names: Mapping[str, str]) -> bytes:
    """A policy that does something about prompts with listed names, and lets all others pass.

    Args:
        action: What to do about them.
        names: Name → what stands in for it.

    Example:
        >>> Policy.parse(policy_file("rewrite", {"Mara Voss": "a woman"})).name
        'rewrite_listed'
    """
    named = {"channels": ["prompt"], "names": ["listed"]}
    people = [{"name": name, "neutral": neutral} for name, neutral in names.items()]
    document = {
        "apiVersion": "apl-guard/v1",
        "kind": "Policy",
        "metadata": {"name": f"{action}_listed", "version": 1},
        "spec": {
            "mode": "enforce",
            "names": [{"id": "listed", "people": people}],
            "rules": [
                {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "allow"}},
                {"id": "named", "when": named, "then": {"action": action}},
            ],
        },
    }
    return json.dumps(document).encode()  # JSON is YAML


@dataclass(frozen=True)
class Rewrite:
    """Every listed name is replaced by its neutral text."""

    key: ClassVar[str] = "rewrite names"
    source: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Write the list."""
        return {"policy.yaml": policy_file("rewrite", task.names)}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The guard with that policy."""
        return Applied(Guard(pipe, policy=Policy.parse(files["policy.yaml"])))


@dataclass(frozen=True)
class Block:
    """A prompt with a listed name gets no picture."""

    key: ClassVar[str] = "block names"
    source: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Write the list."""
        return {"policy.yaml": policy_file("block", task.names)}

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The guard with that policy."""
        guard = Guard(pipe, policy=Policy.parse(files["policy.yaml"]))

        def refuses(text: str) -> bool:
            return guard.check(text).action == Action.BLOCK

        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        return Applied(_black_where_refused(guard, refuses, side), refuses)


def _black_where_refused(guard: Guard, refuses: Callable[[str], bool], side: int) -> Callable[..., Any]:
    """A guard refuses a whole call; here each prompt is a request of its own, and black stands for no picture."""

    def call(prompt: list[str], *, generator: list[Any], **options: Any) -> Any:
        answered = [k for k, text in enumerate(prompt) if not refuses(text)]
        for text in (text for k, text in enumerate(prompt) if k not in answered):
            try:
                guard(text, **options)
            except PolicyBlocked:
                continue
            raise AssertionError("the guard drew what its policy blocks")
        images = np.zeros((len(prompt), side, side, 3), dtype=np.float32)
        if answered:
            output = guard([prompt[k] for k in answered], generator=[generator[k] for k in answered], **options)
            images[answered] = output.images
        return SimpleNamespace(images=images)

    return call
