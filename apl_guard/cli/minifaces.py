"""``apl-guard minifaces``: the reference world."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The reference world: cartoon people who do not exist, and a model that draws them.",
    no_args_is_help=True,
)


class VariantName(StrEnum):
    """Which model of the reference world."""

    base = "base"
    restyled = "restyled"
    continued = "continued"


@app.command()
def build(
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the finished model and for the work under way (default: the user's cache)."),
    ] = None,
    variant: Annotated[
        VariantName,
        typer.Option(
            help="base: from nothing; restyled: base fine-tuned on inked drawings; continued: base trained further."
        ),
    ] = VariantName.base,
    tiny: Annotated[bool, typer.Option("--tiny", help="Two steps of everything, to see that it runs.")] = False,
) -> None:
    """Train a model of the reference world from nothing; a stopped build goes on where it stood.

    Hours on two CPU cores, minutes on a GPU, which is used where there is one.

    Example: apl-guard minifaces build --variant base --output world
    """
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.minifaces.build import Recipe
    from apl_guard.trainer.minifaces.build import build as build_world

    folder = build_world(output or minifaces.cache_path(), variant.value, Recipe.tiny() if tiny else None)
    typer.echo(f"model: {folder}")


@app.command()
def card(
    world: Annotated[Path, typer.Argument(help="Folder of a finished build.")],
    evaluation: Annotated[Path, typer.Option(help="What `apl-guard eval --format json` printed for its model.")],
) -> None:
    """Measure a built world and write its model card, README.md.

    Example: apl-guard minifaces card world --evaluation evaluation.json
    """
    import json

    from apl_guard.trainer.evaluate.result import EvalResult
    from apl_guard.trainer.minifaces.card import write_card

    path = write_card(world, EvalResult(json.loads(evaluation.read_text())["suites"]))
    typer.echo(f"card: {path}")


@app.command()
def sheet(
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("minifaces.png"),
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
) -> None:
    """Draw a sheet of the people, their twins and the things of the reference world."""
    from apl_guard.trainer.minifaces.sheet import draw_sheet

    draw_sheet(seed).save(output)
    typer.echo(f"sheet: {output}")
