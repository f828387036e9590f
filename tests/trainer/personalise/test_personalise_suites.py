"""The suites "personalised" and "transfer" measure what they say, on models made in two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.result import Album
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.variants import VariantRecipe
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.suites import personalised, transfer

ARMS = {"plain", "guarded"}


@pytest.fixture(name="setting")
def _setting(tmp_path: Path) -> Any:
    options = {"steps": 1, "images_per_person": 1, "people_limit": 3, "folder": tmp_path / "pictures"}
    pipe = open_pipe("minifaces")
    album = Album()
    return Setting.of(pipe, Prefix.load("minifaces"), minifaces.judges(), album=album, progress=False, **options)


def test_each_way_adds_everybody(setting) -> None:
    """Three people in groups of two: every way draws all of them by its own words, each arm judged by who they are."""
    from dataclasses import replace

    found = personalised(setting, replace(Recipe.tiny(), group=2))

    assert list(found) == ["personalised dreambooth", "personalised lora", "personalised textual inversion"]
    for suite, arms in found.items():
        assert set(arms) == ARMS
        assert {arm["images"] for arm in arms.values()} == {3}
        asked = setting.album.asked[suite]
        assert len({one.person for one in asked}) == 3
        assert all(("<" in one.text) == (one.person not in one.text) == ("inversion" in suite) for one in asked)
        pictures = setting.album.images[suite]
        assert (pictures["plain"] != pictures["guarded"]).any(axis=(1, 2, 3)).all()


def test_transfer_draws_the_same_prompts_with_other_weights(setting) -> None:
    """Four models, the first the model itself; a second run makes no model and draws no picture."""
    found = transfer(setting, Recipe.tiny(), VariantRecipe.tiny())

    assert list(found) == ["transfer base", "transfer continued", "transfer restyled", "transfer merged"]
    assert [set(arms) for arms in found.values()] == [ARMS, *[ARMS | {"base"}] * 3]
    assert {arm["images"] for arms in found.values() for arm in arms.values()} == {3}
    plain = [setting.album.images[suite]["plain"] for suite in found]
    assert all((plain[0] != other).any() for other in plain[1:])
    with (
        patch("apl_guard.trainer.minifaces.training.torch.optim.AdamW", side_effect=AssertionError),
        patch.object(Setting, "_draw", side_effect=AssertionError),
    ):
        assert transfer(setting, Recipe.tiny(), VariantRecipe.tiny()) == found
