"""Runs of training that are stopped in the middle, or started from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.prefix import Prefix

_SHORT = ("steps=1", "images_per_identity=1", "generic_count=2", "sampling_steps=1", "identity_batch=1")


class StopError(Exception):
    """Ends a run in the middle."""


def stopping_at(step: int, save: Callable[..., None]) -> Callable[..., None]:
    """What saves the state of a run, and ends it where this step is saved."""

    def saves(folder: Path, state: Any, binding: Any) -> None:
        save(folder, state, binding)
        if state.step == step:
            raise StopError

    return saves


def train_folder(model: Path, work: Path, *options: str) -> Prefix:
    """The prefix that `apl-guard train` makes of a folder in a step."""
    people = work / "people.yaml"
    people.write_text(
        "identities:\n" + "".join(f"  - {{name: {n}, neutral: {{coarse: a man}}}}\n" for n in ("Ada", "Bo"))
    )
    command = ["train", "--model", str(model), "--identities", str(people), "--quiet"]
    command += ["--output", str(work / "prefix")]
    command += [part for option in (*_SHORT, *options) for part in ("--set", option)]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0, result.output
    return Prefix.load(work / "prefix")
