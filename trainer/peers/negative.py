"""Negative prompts: classifier-free guidance away from a text in place of away from the empty text.

    ε̄ = ε(z_t, c_n) + s_g (ε(z_t, c_p) − ε(z_t, c_n))

Letters: c_p the prompt, c_n the negative prompt, s_g the guidance scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from apl_guard.trainer.peers.concept import Scope, concept_file, concept_of
from apl_guard.trainer.peers.peer import Applied, Files, Task


@dataclass(frozen=True)
class NegativePrompt:
    """The list, or the name that a prompt holds, as the negative prompt."""

    scope: Scope = "named"
    source: ClassVar[str] = "Ho and Salimans, arXiv:2207.12598 (guidance); negative prompts are folklore"

    @property
    def key(self) -> str:
        """Its name."""
        return f"negative prompt, {self.scope}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What stands in the negative prompt."""
        return {"scope": self.scope}

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Write the list, or as much of it as a prompt holds."""
        return concept_file(self.scope, pipe.tokenizer, task.names)

    def apply(self, pipe: Any, files: Files) -> Applied:
        """The pipe with the argument `negative_prompt`."""
        concept = concept_of(files)

        def call(prompt: list[str], **options: Any) -> Any:
            return pipe(prompt, negative_prompt=[concept(text) for text in prompt], **options)

        return Applied(call)
