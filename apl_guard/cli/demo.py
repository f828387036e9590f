"""`apl-guard demo`: the whole idea at work, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.options import Quiet, seed_option


def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.html and grid.png.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Use the shipped prefix instead of training one.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit for making data and training.")] = 9.0,
    people: Annotated[int | None, typer.Option(min=1, help="How many people to show.")] = None,
    seed: Annotated[int, seed_option("Seed of the images.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train a prefix for the shipped model, measure it, and write a report with images.

    Example: apl-guard demo --quick
    """
    from apl_guard.errors import ExtraMissing
    from apl_guard.trainer.demo import run_demo
    from apl_guard.trainer.one_run import only_run

    ExtraMissing.check("eval", "scipy")  # before the lock, which is a file
    with only_run(output):
        result = run_demo(
            output, quick=quick, minutes=minutes, people=people, seed=seed, progress=not quiet, say=typer.echo
        )
    typer.echo(result.evaluation.to_table())
    typer.echo(f"report: {result.report}\ngrid:   {result.grid}\ntook {result.seconds / 60:.1f} minutes")
