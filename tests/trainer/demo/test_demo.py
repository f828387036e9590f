"""The demo from end to end, on a model and judges of random weights in place of the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_model import small_pipe

from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.demo.run import run_demo
from apl_guard.trainer.minifaces.judge import Judges


@pytest.fixture(name="weights")
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, people and a recipe, laid out as the shipped one is."""
    folder = tmp_path / "weights"
    small_pipe(shallow=True).save_pretrained(folder / "base")
    people = minifaces.known_people()[:6]
    entries = [{"name": p.name, "neutral": {"coarse": p.neutral("coarse")}} for p in people]
    (folder / "identities.yaml").write_text(yaml.safe_dump({"identities": entries}))
    recipe = TrainConfig(
        n_vectors=2,
        steps=4,
        identity_batch=2,
        generic_batch=2,
        images_per_identity=1,
        generic_count=4,
        sampling_steps=1,
    )
    (folder / "prefix").mkdir()
    (folder / "prefix" / "config.yaml").write_bytes(recipe.to_bytes())
    monkeypatch.setattr(minifaces, "WEIGHTS", folder)
    return folder


def test_the_demo_trains_measures_and_reports(weights: Path, judges: Judges, tmp_path: Path) -> None:
    """It leaves a page, a picture, the figures and a prefix, and says how long it will take."""
    said: list[str] = []

    result = run_demo(tmp_path / "demo", minutes=0.5, people=1, judges=judges, progress=False, say=said.append)

    assert "training a prefix: about" in said[0]
    assert "People never seen in training" in result.report.read_text()
    assert Image.open(result.grid).width > 800
    figures = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    assert set(figures["suites"]) == {"seen", "unseen", "generic"}
    prefix = Prefix.load(tmp_path / "demo" / "prefix")
    assert figures["settings"]["prefix"] == prefix.digest

    prefix.save(weights / "prefix")
    quick = run_demo(tmp_path / "quick", quick=True, people=1, judges=judges, progress=False, say=said.append)
    assert quick.evaluation.settings["prefix"] == prefix.digest
    assert not (tmp_path / "quick" / "prefix").exists()
