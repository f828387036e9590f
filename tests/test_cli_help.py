"""What `--help` looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.trainer.config import TrainConfig


@pytest.mark.parametrize("command", ["eval", "bench", "audit verify", "policy replay", "audit keys destroy"])
def test_help_fills_the_width_of_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of a paragraph ends where the first word of the next would still have had room."""
    width = 80
    monkeypatch.setenv("COLUMNS", str(width))

    shown = CliRunner().invoke(app, [*command.split(), "--help"]).output

    lines = [line.strip() for line in re.split(r"╭", shown, maxsplit=1)[0].splitlines() if "Usage:" not in line]
    # typer 0.15 puts no empty line between paragraphs.
    paragraphs = [" ".join(paragraph.split()) for paragraph in _help_of(command).split("\n\n")]
    last = {line for line in lines if any(paragraph.endswith(line) for paragraph in paragraphs)}
    pairs = [(line, after) for line, after in pairwise(lines) if after and line not in last]
    assert pairs
    for line, after in pairs:
        assert len(line) + 1 + len(after.split()[0]) > width - 2, line


def _help_of(command: str) -> str:
    found: Any = get_command(app)
    for name in command.split():
        found = found.commands[name]
    return str(found.help)


def test_a_seed_has_the_same_range_in_every_command(tmp_path: Path) -> None:
    """That of `TrainConfig`, so that one seed can be used throughout."""
    least, most = -(2**62), 2**62 - 1
    commands = [name for name, _ in _options("--seed")]

    assert set(commands) >= {"attack", "bench", "demo", "eval", "generate", "minifaces scale"}
    for seed in (least - 1, most + 1):
        for command in commands:
            answer = CliRunner().invoke(app, [*command.split(), f"--seed={seed}"])
            assert (answer.exit_code, "2^62" in answer.output) == (2, True), command
        with pytest.raises(ValidationError):
            TrainConfig(seed=seed)
    for seed in (least, most):
        drawn = CliRunner().invoke(app, ["minifaces", "sheet", f"--seed={seed}", "--output", str(tmp_path / "a.png")])
        assert drawn.exit_code == 0
        assert TrainConfig(seed=seed).seed == seed


def test_help_names_what_an_option_takes() -> None:
    """In a word that fits beside it: neither a type of Python, nor a choice that is broken within its words."""
    several = [(name, option) for name, option in _options() if getattr(option, "multiple", False)]

    assert len(several) > 10
    assert [name for name, option in several if not option.metavar] == []


def _options(flag: str = "", group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command that has an option of this name, or any, and the option."""
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _options(flag, command, (*path, name))
        yield from ((" ".join((*path, name)), option) for option in command.params if flag in (*option.opts, ""))
