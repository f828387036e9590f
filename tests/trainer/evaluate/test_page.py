"""The report of an evaluation: one file, everything in it, from the command line too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput
from apl_guard.trainer.evaluate.curves import Curve, read_curves, write_curves
from apl_guard.trainer.evaluate.page import write_report
from apl_guard.trainer.evaluate.result import ATTACK, Asked, EvalResult


@pytest.fixture(name="result")
def _result() -> EvalResult:
    rng = np.random.default_rng(0)
    arms = ("plain", "neutral", "guarded")
    rate = {"images": 3, "leak_far_1e-3": 0.5, "leak_far_1e-3_ci": [0.1, 0.9], "worst_leak_far_1e-3_person": "A <b> B"}
    return EvalResult(
        {"seen": {arm: rate for arm in arms}, "gated": {"plain": {"h_c": 0.1}, "gated": {"h_c": 0.9}}},
        {"model": "0123abc", "versions": {"torch": "1.2.3"}},
        {"seen": {arm: rng.integers(0, 256, (3, 300, 300, 3), dtype=np.uint8) for arm in arms}},
        {"seen": [Asked("a <i>photo</i>", "", name, {}, {}) for name in ("Ada", "Bo", "Ada")]},
    )


def test_the_report_holds_everything_and_refers_to_nothing(result: EvalResult) -> None:
    """Every arm of two people is shown; figures, command, versions and digests are there; what it quotes is escaped."""
    curve = Curve("Leak", "vectors", [{"x": 5, "label": "N = 5", "leak": 0.1, "leak_ci": [0.0, 0.2]}])

    page = write_report(result, "apl-guard eval --model 'a & b'", [curve])

    assert not re.search(r"https?://|src=\"(?!data:)|href=", page)
    assert page.count("<img") == 2 * 3
    for text in (
        "50.0 % [10.0, 90.0]",
        "0.900",
        "a &amp; b",
        "0123abc",
        "torch 1.2.3",
        "A &lt;b&gt; B",
        "N = 5",
        "<svg",
    ):
        assert text in page
    assert "<i>photo" not in page
    assert len(page) < 1_000_000, "large pictures are reduced"


def test_attacks_stand_in_one_table() -> None:
    """A row for each class, what was refused or withheld behind it."""
    checked = {"images": 4, "leak_far_1e-3": 0.0, "refused": 2, "withheld": 1}
    arms = {"plain": {"images": 4, "leak_far_1e-3": 0.75}, "guarded_checked": checked}

    page = write_report(EvalResult({f"{ATTACK}misspelt": arms, f"{ATTACK}split": arms}), "apl-guard eval")

    assert page.count("<h3>") == 1
    for text in ("<th>misspelt</th>", "<th>split</th>", "75.0 %", "2 refused, 1 withheld", "guarded, checked"):
        assert text in page


def test_curves_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A point that lacks a figure is left out of its line; what `tradeoff` writes is read, too."""
    curve = Curve("Leak", "N", [{"x": 2, "label": "b", "leak": 0.1}, {"x": 1, "label": "a", "leak": None, "top1": 0.3}])
    write_curves(tmp_path / "curves.json", [curve])
    tradeoff = {"points": [{"setting": "coarse", "attributes_kept": 0.4, "leak": 0.02}]}
    (tmp_path / "tradeoff.json").write_text(json.dumps(tradeoff))

    assert read_curves(tmp_path / "curves.json") == [curve]
    assert curve.series == {"leak": [(2.0, 0.1)], "top1": [(1.0, 0.3)]}
    assert read_curves(tmp_path / "tradeoff.json")[0].series == {"leak at FAR 1e-3": [(0.4, 0.02)]}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"curves": [{"title": "t", "x": "N", "points": [{"y": 1}]}]}'])
def test_a_file_without_curves_is_an_error(content: str, tmp_path: Path) -> None:
    """The message names the file and the command that writes one."""
    (tmp_path / "curves.json").write_text(content)

    with pytest.raises(InvalidInput, match=r"curves\.json.*minifaces scale"):
        read_curves(tmp_path / "curves.json")


def test_curves_without_a_report_are_an_error(tmp_path: Path) -> None:
    """Nothing asked for is silently left out."""
    (tmp_path / "curves.json").write_text('{"curves": []}')
    arguments = ["eval", "--model", "minifaces", "--prefix", "minifaces", "--curves", str(tmp_path / "curves.json")]

    answer = CliRunner().invoke(app, arguments)

    assert isinstance(answer.exception, InvalidInput)
    assert "--report" in str(answer.exception)
