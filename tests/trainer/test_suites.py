"""Suites are functions: those that the command line names, and whatever else somebody hands over."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import small_pipe

from apl_guard.cli.evaluate import Suite as Named
from apl_guard.errors import InvalidInput
from apl_guard.testing import random_prefix
from apl_guard.trainer.evaluate import evaluate
from apl_guard.trainer.evaluate.result import Figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.suites import SUITES


def test_the_command_line_names_every_suite() -> None:
    """`--suite` offers those that there are, and `all`."""
    assert [suite.value for suite in Named] == [*SUITES, "all"]


def test_a_suite_of_ones_own_is_measured_beside_the_others(tmp_path: Path) -> None:
    """It gets the setting of the evaluation, and its figures stand in the result under the names that it gives."""
    pipe = small_pipe(shallow=True)
    prefix = random_prefix(pipe, n=2)

    def mine(setting: Setting) -> dict[str, dict[str, Figures]]:
        pictures = setting.draw(setting.guard, ["a red car"], "mine")
        return {"mine": {"guarded": {"images": len(pictures)}}}

    result = evaluate(pipe, prefix, {"mine": mine}, steps=1, folder=tmp_path, progress=False)

    assert result.suites == {"mine": {"guarded": {"images": 1}}}
    assert result.settings["suites"] == ["mine"]
    assert result.settings["prefix"] == prefix.digest
    with pytest.raises(InvalidInput, match="suites: found none"):
        evaluate(pipe, prefix, {}, folder=tmp_path, progress=False)
