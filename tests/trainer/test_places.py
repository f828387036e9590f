"""Where results cannot be written is said before the work whose results they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import StorageFailed
from apl_guard.trainer.evaluate.setting import Setting


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["demo", "--quick", "--people", "1"], "report.html"),
        (["minifaces", "scale", "--axis", "eta", "--value", "1", "--set", "steps=1", "--people", "1"], "curves.png"),
        (["attack", "--model", "minifaces", "--prefix", "minifaces", "--people", "1", "--steps", "1"], "attack.json"),
        (["bench", "--people", "1", "--steps", "1", "--no-afterwards"], "bench.json"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_first(
    command: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a folder has the name of the file; the same look finds a disk that is mounted to be read only."""

    def draw(*_: object, **__: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr(Setting, "draw", draw)
    (tmp_path / "out" / file).mkdir(parents=True)
    answer = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])

    assert isinstance(answer.exception, StorageFailed), answer.exception
    assert f"{file}: is a folder" in str(answer.exception)
