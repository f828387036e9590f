"""What the tests of training share: a small pipeline, a few people, and a cache of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities

sys.path.insert(0, str(Path(__file__).parent))

from names_and_prompts import NAMES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(name="pipe", scope="session")
def _pipe() -> Any:
    """The smallest pipe there is, where the layout does not matter."""
    from apl_guard.testing import tiny_pipe

    pipe = tiny_pipe()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(name="people", scope="session")
def _people() -> Identities:
    entries = [{"name": name, "neutral": {"coarse": "a man", "attributes": "a bald man"}} for name in NAMES]
    return Identities.model_validate({"identities": entries, "templates": ["a photo of {name}", "{name}"]})


@pytest.fixture(name="config", scope="session")
def _config() -> TrainConfig:
    """A run of seconds."""
    return TrainConfig(
        n_vectors=3,
        steps=4,
        identity_batch=2,
        generic_batch=2,
        warmup_steps=1,
        images_per_identity=2,
        sampling_steps=2,
        held_aside_identities=2,
        held_aside_generic=1,
        eval_every=2,
        checkpoint_every=2,
        precision="float32",
    )
