"""What the models that find persons have in common: how they are asked, and how their weights are opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from apl_guard.errors import PolicyInvalid

__all__ = ["MOST_TOKENS", "MOST_WINDOWS", "WEIGHTS", "PersonMatch", "PersonReader", "read_weights"]

MOST_TOKENS = 512
"""In one window of a text, also where the model could read more."""
MOST_WINDOWS = 16
"""In one run of the model, so that no request takes all memory."""
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PersonMatch:
    """Somebody in a text."""

    start: int
    end: int
    score: float


class PersonReader(Protocol):
    """A model that finds persons in texts."""

    model: Any
    """The module of torch that runs."""
    sha256: str
    """Digest of its weights."""

    def read(self, texts: list[str], until: float) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some texts.

        Args:
            texts: The texts.
            until: When nobody waits for the answer any more, by `time.monotonic`.

        Raises:
            TimeoutError: It is later than `until`, and others wait for their turn.
            ArithmeticError: The model answers with numbers that are none.
            Exception: Whatever the model raises.
        """


def read_weights(folder: Path, sha256: str | None) -> tuple[bytes, str]:
    """The weights in a folder, and their digest. Read at once: a file may be overwritten while a service runs.

    Args:
        folder: The folder of a model.
        sha256: The only digest that is accepted, or None.

    Raises:
        PolicyInvalid: They are others.
        OSError: They cannot be read.
    """
    content = (folder / WEIGHTS).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise PolicyInvalid(f"{WEIGHTS} has sha256 {found}; the policy wants {sha256}", where=folder)
    return content, found
