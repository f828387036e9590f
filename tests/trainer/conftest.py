"""What the tests of training share: a small pipeline, a few people, and a cache of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.minifaces import known_people
from apl_guard.trainer.minifaces.judge import Gallery, Judges, Reader, Recogniser
from apl_guard.trainer.minifaces.traits import GEOMETRY

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


@pytest.fixture(name="judges", scope="session")
def _judges() -> Judges:
    """Judges of random weights, who know everybody of the reference world and nine look-alikes of each."""
    torch.manual_seed(0)
    known = [person.name for person in known_people()]
    names = (*known, *(f"twin {k}" for k in range(9 * len(known))))
    embeddings = torch.nn.functional.normalize(torch.randn(len(names), GEOMETRY), dim=-1)
    return Judges(Recogniser(), Reader(), Gallery(names, embeddings), {"far_1e-2": 0.2, "far_1e-3": 0.3})


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
