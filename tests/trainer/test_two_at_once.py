"""Long commands given twice with one output folder: the second says so, before it writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput
from apl_guard.trainer.one_run import only_run


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["demo", "--quick"], "out"),
        (["bench", "--people", "2", "--steps", "1", "--no-afterwards"], "out"),
        (["attack", "--model", "minifaces", "--prefix", "minifaces", "--people", "1", "--steps", "1"], "out"),
        (["minifaces", "scale", "--axis", "eta", "--people", "1"], "out"),
        (["minifaces", "build", "--tiny"], "out"),
        (["minifaces", "build", "--tiny", "--variant", "restyled"], "out/restyled"),
    ],
)
def test_a_second_run_into_the_same_folder_is_refused(command: list[str], folder: str, tmp_path: Path) -> None:
    """Both would write the same files; of two builds, one took away what the other had begun."""
    with only_run(tmp_path / folder):
        answer = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])

    assert isinstance(answer.exception, InvalidInput), answer.output
    assert "another run writes into it now" in str(answer.exception)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
