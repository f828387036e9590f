"""What `--help` looks like."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from apl_guard.cli import app


@pytest.mark.parametrize("command", ["eval", "bench", "audit verify", "policy replay", "audit keys destroy"])
def test_help_fills_the_width_of_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a paragraph ends where the first word of the next would still have had room."""
    width = 80
    monkeypatch.setenv("COLUMNS", str(width))

    shown = CliRunner().invoke(app, [*command.split(), "--help"]).output

    lines = [line.strip() for line in re.split(r"╭", shown, maxsplit=1)[0].splitlines() if "Usage:" not in line]
    # typer 0.15 puts no empty line between paragraphs.
    ends = tuple(" ".join(paragraph.split()[-2:]) for paragraph in _help_of(command).split("\n\n"))
    pairs = [(line, after) for line, after in pairwise(lines) if line and after and not line.endswith(ends)]
    assert pairs
    for line, after in pairs:
        assert len(line) + 1 + len(after.split()[0]) > width - 2, line


def _help_of(command: str) -> str:
    found: Any = get_command(app)
    for name in command.split():
        found = found.commands[name]
    return str(found.help)
