"""What `--help` looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
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


def test_a_seed_has_the_same_range_in_every_command() -> None:
    """That of `TrainConfig`, so that one seed can be used throughout."""
    found = {name: _range_of(option) for name, option in _options("--seed")}

    assert found.keys() >= {"attack", "bench", "demo", "eval", "generate", "minifaces scale"}
    (least, most) = set(found.values()).pop()
    assert set(found.values()) == {(least, most)}
    assert {TrainConfig(seed=seed).seed for seed in (least, most)} == {least, most}
    for seed in (least - 1, most + 1):
        with pytest.raises(ValidationError):
            TrainConfig(seed=seed)


def _range_of(option: Any) -> tuple[int | None, int | None]:
    holder = option if hasattr(option, "min") else option.type  # of older versions of typer
    return getattr(holder, "min", None), getattr(holder, "max", None)


def _options(flag: str, group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command that has an option of this name, and the option."""
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _options(flag, command, (*path, name))
        yield from ((" ".join((*path, name)), option) for option in command.params if flag in option.opts)
