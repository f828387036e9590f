"""A model to which people were added, and how its prompts call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.personalise.drawings import Drawings
from apl_guard.trainer.personalise.recipe import Recipe


@dataclass(frozen=True)
class Added:
    """A pipe of its own, which shares with the model it came from whatever did not change."""

    pipe: Any
    words: Mapping[str, str]
    """Name → what a prompt says for it: the name, or a learned word."""
    policy: str
    """The strictest built-in policy under which a guard draws with this pipe."""


def names_of(drawings: Drawings) -> dict[str, str]:
    """Everybody is called by their name."""
    return {person.name: person.name for person in drawings.people}


def decided_by(pipe: Any, drawings: Drawings, recipe: Recipe, *settings: str) -> dict[str, Any]:
    """All that decides what is learned: the model, the drawings, and the settings named.

    Precision and threads are not among it: they decide the last bits only.
    """
    return {
        "model": model_digest(pipe),
        "drawings": drawings.digest,
        **{name: getattr(recipe, name) for name in settings},
    }
