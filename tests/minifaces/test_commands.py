"""What is handed to a card, and the sheet: typed errors before any work, and no half files."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.trainer.evaluate.world_card import read_evaluation
from apl_guard.trainer.minifaces import WEIGHTS


@pytest.mark.parametrize(
    "content",
    ['{"suites": ', "[1]", "{}", '{"suites": {"seen": 1}}', '{"suites": {"seen": {"plain": {"images": "4"}}}}', "\xff"],
)
def test_what_is_no_evaluation_is_said_before_anything_is_measured(content: str, tmp_path: Path) -> None:
    """Damaged JSON, other JSON and evaluations of other suites are one line that names the file."""
    path = tmp_path / "evaluation.json"
    path.write_bytes(content.encode("latin-1"))

    answer = CliRunner().invoke(app, ["minifaces", "card", str(tmp_path / "no world"), "--evaluation", str(path)])

    assert isinstance(answer.exception, InvalidInput)
    assert "evaluation.json: is not an evaluation" in str(answer.exception)


def test_the_shipped_evaluation_is_one() -> None:
    """What eval printed for the shipped model is read."""
    assert read_evaluation(WEIGHTS / "evaluation.json").suites["seen"]["plain"]["images"] > 0


def test_a_sheet_is_a_png_whatever_it_is_called(tmp_path: Path) -> None:
    """The name of the file decides nothing; a folder in its place is an error."""
    answer = CliRunner().invoke(app, ["minifaces", "sheet", "--output", str(tmp_path / "new" / "sheet")])

    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "new" / "sheet").read_bytes().startswith(b"\x89PNG")
    answer = CliRunner().invoke(app, ["minifaces", "sheet", "--output", str(tmp_path)])
    assert isinstance(answer.exception, StorageFailed)
