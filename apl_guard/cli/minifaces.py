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
def tradeoff(
    prefixes: Annotated[list[Path], typer.Argument(help="Folders of prefixes of the shipped model, each with a name.")],
    output: Annotated[Path, typer.Option(help="JSON to write.")] = Path("curves.json"),
    images_per_person: Annotated[int, typer.Option(min=1, help="Pictures of each person with each prefix.")] = 2,
    people: Annotated[int | None, typer.Option(min=1, help="At most so many seen and so many unseen people.")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of prompts and pictures.")] = 0,
) -> None:
    """Measure leak against attributes kept, for prefixes trained with other settings: the curve in the report.

    Example: apl-guard minifaces tradeoff prefixes/coarse prefixes/attributes --output curves.json
    """
    import json

    from apl_guard.prefix import Prefix
    from apl_guard.storage import write_file
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.evaluate.tradeoff import measure_tradeoff
    from apl_guard.trainer.pipeline import open_pipe

    named = {folder.name: Prefix.load(folder) for folder in prefixes}
    pipe = open_pipe(minifaces.model_path())
    points = measure_tradeoff(pipe, named, images_per_person, people, seed, guidance=guidance)
    write_file(output, (json.dumps({"points": points}, indent=2) + "\n").encode())
    for point in points:
        typer.echo(
            f"{point['setting']:<16} attributes kept {point['attributes_kept']:6.1%}   leak {point['leak']:6.1%}"
            f"   top-1 {point['top1']:6.1%}   ({point['images']} pictures)"
        )


@app.command()
def sheet(
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("minifaces.png"),
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
) -> None:
    """Draw a sheet of the people, their twins and the things of the reference world."""
    from apl_guard.trainer.minifaces.sheet import draw_sheet

    draw_sheet(seed).save(output)
    typer.echo(f"sheet: {output}")
