"""What `--help` looks like."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app


@pytest.mark.parametrize("command", ["eval", "bench", "audit verify", "policy replay", "audit keys destroy"])
def test_help_fills_the_width_of_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a paragraph ends where the first word of the next would still have had room."""
    width = 80
    monkeypatch.setenv("COLUMNS", str(width))

    shown = CliRunner().invoke(app, [*command.split(), "--help"]).output

    prose = re.split(r"╭", shown, maxsplit=1)[0].splitlines()
    lines = [line.strip() for line in prose if "Usage:" not in line]
    pairs = [(line, after) for line, after in pairwise(lines) if line and after]
    assert pairs
    for line, after in pairs:
        assert len(line) + 1 + len(after.split()[0]) > width - 2, line
