"""Generic prompts for a model of which nothing is known: people without a name, things, animals, places."""

from __future__ import annotations

import random

_PEOPLE = (
    "a man", "a woman", "an old man", "an old woman", "a boy", "a girl", "a young woman with red hair",
    "a man with a beard", "a woman with glasses", "a nurse", "a firefighter", "a musician", "two friends",
    "a family", "a crowd", "a cyclist", "a dancer", "a farmer", "a chef", "a teacher",
)  # fmt: skip
_THINGS = (
    "a cat", "a dog", "a horse", "a bird", "an elephant", "a red car", "a bicycle", "a sailing boat",
    "a train",
    "a wooden chair", "a cup of coffee", "a bowl of fruit", "a slice of pizza", "a vase of flowers", "a book",
    "a violin", "a clock", "a lighthouse", "a castle", "a bridge", "a mountain", "a waterfall", "a forest",
    "a city at night", "a street market", "a kitchen", "a living room", "a pair of shoes", "a robot",
)  # fmt: skip
_SCENES = (
    "", "", "", " in the snow", " at sunset", " on a table", " in a garden", " in the rain", " by the sea",
    " in a museum", " on a white background", " in an old town", " under a blue sky", " in the fog",
)  # fmt: skip
_STYLES = (
    "a photo of {}", "a close-up of {}", "{}", "an oil painting of {}", "a watercolour of {}",
    "a drawing of {}",
    "a black and white photo of {}", "a 3d rendering of {}", "a picture of {}",
)  # fmt: skip


def generic_captions(n: int, seed: int) -> list[str]:
    """Draw different generic prompts, half of them with people.

    Args:
        n: How many; fewer come back where the grammar has no more.
        seed: Equal seeds draw equal prompts.

    Example:
        >>> len(set(generic_captions(100, seed=0)))
        100
    """
    rng = random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(20 * n):
        subject = rng.choice(rng.choice((_PEOPLE, _THINGS)))
        found[rng.choice(_STYLES).format(subject + rng.choice(_SCENES))] = None
        if len(found) == n:
            break
    return list(found)
