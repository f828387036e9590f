"""What a long run needs at its end is looked for at its beginning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import ExtraMissing
from apl_guard.trainer.data import generation

MODEL = ("--model", "minifaces", "--prefix", "minifaces")


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("scipy", ("eval", *MODEL)),
        ("scipy", ("eval", *MODEL, "--protocol", "apl-2026")),
        ("peft", ("eval", *MODEL, "--suite", "seen", "--suite", "personalised")),
        ("peft", ("eval", *MODEL, "--suite", "all")),
        ("torchmetrics", ("eval", *MODEL, "--suite", "generic", "--suite", "inactivity")),
        ("scipy", ("attack", *MODEL, "--search", "tokens", "--output", "out")),
        ("matplotlib", ("attack", *MODEL, "--search", "tokens", "--output", "out")),
        ("matplotlib", ("bench", "--output", "out")),
        ("scipy", ("demo", "--output", "out")),
        ("matplotlib", ("minifaces", "scale", "--output", "out")),
    ],
)
def test_a_missing_extra_is_said_before_anything_is_drawn_or_trained(
    package: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of drawing does not end in a hint to install something: the hint comes first, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, package, None)

    result = CliRunner().invoke(app, command)

    assert isinstance(result.exception, ExtraMissing)
    assert f"{package} is not installed; install it with: pip install 'apl-guard[eval]'" in str(result.exception)
    assert not list(tmp_path.rglob("*"))
    assert not generation.cache_folder().exists()
