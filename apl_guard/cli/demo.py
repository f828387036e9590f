"""`apl-guard demo`: the whole idea at work, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.quiet import Quiet


def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.html and grid.png.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Take the shipped prefix instead of training one.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long making data and training may take.")] = 9.0,
    people: Annotated[int | None, typer.Option(min=1, help="How many people to draw.")] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train a prefix on the shipped model, guard the model with it, measure, and write a report."""
    from apl_guard.errors import ExtraMissing
    from apl_guard.trainer.demo import run_demo
    from apl_guard.trainer.train.checkpoint import only_run

    ExtraMissing.check("eval", "scipy")  # before the lock, which is a file
    with only_run(output):
        result = run_demo(
            output, quick=quick, minutes=minutes, people=people, seed=seed, progress=not quiet, say=typer.echo
        )
    typer.echo(result.evaluation.to_table())
    typer.echo(f"report: {result.report}\ngrid:   {result.grid}\ntook {result.seconds / 60:.1f} minutes")
