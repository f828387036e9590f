"""Seeds: whatever is drawn at random has a series of its own, so that no two things are drawn from one seed.

A seed depends on nothing but its parts, so what is drawn does not depend on what was drawn before it.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["ADDED_PEOPLE", "ATTACKS", "BATCHES", "GENERIC_IMAGES", "IDENTITY_IMAGES", "PEERS", "seed_of"]

IDENTITY_IMAGES: Final = 0
"""Series of the pictures of people that a prefix is trained on."""
GENERIC_IMAGES: Final = 1
"""Of the pictures of prompts that name nobody."""
BATCHES: Final = 2
"""Of what a training step looks at."""
PEERS: Final = 3
"""Of the pictures that peers learn from."""
ATTACKS: Final = 4
"""Of the attacks in the loop of training."""
ADDED_PEOPLE: Final = 4
"""Of what a model draws before people are added to it; the same series as attacks, which have another seed."""


def seed_of(*parts: int) -> int:
    """One seed from several numbers: the user's seed, a series, a number in it.

    Example:
        >>> seed_of(0, BATCHES, 1) == seed_of(0, BATCHES, 1), seed_of(0, BATCHES, 1) == seed_of(1, BATCHES, 0)
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
