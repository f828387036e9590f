"""The reference world: people who do not exist, a real miniature of Stable Diffusion that draws them, and its judges.

>>> from apl_guard.trainer import minifaces
>>> len(minifaces.people())
200
>>> minifaces.generic_prompts(1, seed=0)[0].text != ""
True
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apl_guard.prefix.layout import cache_root

from .captions import (
    ScenePrompt,
    captions,
    generic_prompts,
    identity_prompts,
    identity_templates,
)
from .people import Person, known_people, people

if TYPE_CHECKING:
    from .judge import Judges

__all__ = [
    "WEIGHTS",
    "Person",
    "ScenePrompt",
    "cache_path",
    "captions",
    "generic_prompts",
    "identities_file",
    "identity_prompts",
    "identity_templates",
    "judges",
    "known_people",
    "model_path",
    "people",
    "person_path",
    "prefix_path",
]

WEIGHTS: Final = Path(__file__).resolve().parent / "weights"


def cache_path() -> Path:
    """Where variants that are not shipped are built: a folder of the user's cache."""
    return cache_root() / "minifaces"


def model_path() -> Path:
    """The diffusers folder of the shipped model."""
    return WEIGHTS / "base"


def prefix_path() -> Path:
    """The folder of the shipped prefix."""
    return WEIGHTS / "prefix"


def person_path() -> Path:
    """The folder of the shipped detector of persons."""
    return WEIGHTS / "person"


def identities_file() -> Path:
    """``identities.yaml`` of the 120 seen people."""
    return WEIGHTS / "identities.yaml"


@functools.cache
def judges() -> Judges:
    """The shipped judges, loaded once."""
    from .judge import load_judges

    return load_judges(WEIGHTS / "judges.safetensors")
