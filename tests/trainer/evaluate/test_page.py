"""The report of an evaluation: one file, everything in it, from the command line too."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.curves import Curve, read_curves, write_curves
from apl_guard.trainer.evaluate.page import write_report
from apl_guard.trainer.evaluate.provenance import command
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
    page = re.sub(r"</?small>", "", page)
    for text in (
        "50.0 % [10.0, 90.0]",
        ">0.90<",
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
    """A row for each class, what was refused or withheld behind it; they are one group of the goals, too."""
    checked = {"images": 4, "leak_far_1e-3": 0.0, "refused": 2, "withheld": 1}
    guarded = {"images": 4, "leak_far_1e-3": 0.0}
    arms = {"plain": {"images": 4, "leak_far_1e-3": 0.75}, "guarded": guarded, "guarded_checked": checked}

    page = write_report(EvalResult({f"{ATTACK}misspelt": arms, f"{ATTACK}split": arms}), "apl-guard eval")

    assert page.count("<h3>") == 1
    assert page.count("rowgroup") == 1
    assert "Goals: 2 met." in page
    for text in (">misspelt</th>", ">split</th>", "75.0 %", "2 refused, 1 withheld", "guarded, checked"):
        assert text in page


def test_the_first_figures_come_with_their_intervals() -> None:
    """A leak of 0 % of a few images is not shown without what it may be."""
    arms = {"plain": {"leak_far_1e-3": 1.0}, "guarded": {"leak_far_1e-3": 0.0, "leak_far_1e-3_ci": [0.0, 0.168]}}

    (card,) = re.findall(r'<div class="card">.*?</div>', write_report(EvalResult({"seen": arms}), ""))

    assert re.sub(r"<.*?>", "", card).startswith("100.0 % → 0.0 % [0.0, 16.8]")


def test_nobody_is_the_worst_where_nobody_leaks() -> None:
    """The first of those who are all hidden is not named as the one with the highest leak."""
    name = "Ada Byrd of the Long Names of Old"
    named = {"worst_leak_far_1e-3_person": name}
    arms = {"plain": {"worst_leak_far_1e-3": 0.5, **named}, "guarded": {"worst_leak_far_1e-3": 0.0, **named}}
    result = EvalResult({"seen": arms})

    assert [text.count(name) for text in (write_report(result, ""), result.to_table())] == [1, 1]
    assert len({len(line) for line in result.to_table().splitlines()}) == 1, "columns are as wide as what is in them"


def test_what_is_withheld_is_counted_of_guarded_pictures_alone() -> None:
    """Page and table say the same beside a class of attacks, without what the check withholds of plain pictures."""
    leak = {"images": 4, "leak_far_1e-3": 0.0, "refused": 0}
    arms = {"plain": leak, "plain_checked": leak | {"withheld": 4}, "guarded": leak}
    result = EvalResult({f"{ATTACK}misspelt": {**arms, "guarded_checked": leak | {"withheld": 1}}})

    for text in (write_report(result, "apl-guard eval"), result.to_table()):
        assert "1 withheld" in text
        assert "4 withheld" not in text


def test_groups_of_a_protocol_are_not_held_against_the_goals_of_suites(result: EvalResult) -> None:
    """A group is called like its file; one from `seen.yaml` is not the suite of the reference world."""
    of_protocol = EvalResult(result.suites, {"protocol": "apl-2026"})

    assert "Against the goals" in write_report(result, "")
    assert "Against the goals" not in write_report(of_protocol, "")


def test_a_command_with_bytes_that_are_no_text_can_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of Latin-1 in the command line does not cost the report."""
    monkeypatch.setattr("sys.argv", ["apl-guard", "eval", "--pictures", "caf\udce9"])

    assert rb"caf\udce9" in write_report(EvalResult({}), command()).encode()


def test_curves_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A point that lacks a figure is left out of its line."""
    curve = Curve("Leak", "N", [{"x": 2, "label": "b", "leak": 0.1}, {"x": 1, "label": "a", "leak": None, "top1": 0.3}])
    write_curves(tmp_path / "curves.json", [curve])

    assert read_curves(tmp_path / "curves.json") == [curve]
    assert curve.series == {"leak": [(2.0, 0.1)], "top1": [(1.0, 0.3)]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"curves": [{"title": "t", "x": "N", "points": [{"y": 1}]}]}',
        '{"curves": [{"title": "t", "x": "N", "points": [{"x": 1, "leak": 0.5}]}]}',
        '{"curves": [{"title": "t", "x": "N", "points": [{"x": 1, "label": "a", "leak": "much"}]}]}',
        '{"curves": [{"title": "t", "x": "N", "points": [{"x": 1' + 400 * "0" + ', "label": "a", "leak": 0}]}]}',
        '{"curves": ' + 100_000 * "[",
    ],
)
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


@pytest.mark.parametrize(
    "command_line",
    [
        ("eval", "--prefix", "minifaces", "--model", "nowhere/model", "--report"),
        ("minifaces", "tradeoff", "nowhere/prefix", "--output"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_anything_is_drawn(
    command_line: tuple[str, ...], tmp_path: Path
) -> None:
    """A folder in place of the file is an error before even the model, or the prefix, is looked for."""
    (tmp_path / "report.html").mkdir()

    answer = CliRunner().invoke(app, [*command_line, str(tmp_path / "report.html")])

    assert isinstance(answer.exception, StorageFailed)
    assert "report.html: is a folder" in str(answer.exception)


def test_prefixes_of_one_name_are_not_drawn_over_each_other(tmp_path: Path) -> None:
    """Of two folders that are called alike, the curve would show only one."""
    shipped = minifaces.prefix_path()
    folders = [str(shutil.copytree(shipped, tmp_path / place / "mine")) for place in "ab"]

    answer = CliRunner().invoke(app, ["minifaces", "tradeoff", *folders, "--output", str(tmp_path / "curves.json")])

    assert isinstance(answer.exception, InvalidInput)
    assert "two have one name" in str(answer.exception)
