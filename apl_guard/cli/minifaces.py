"""`apl-guard minifaces`: the reference world."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apl_guard.cli.options import Guidance, ImagesPerPerson, Quiet, seed_option
from apl_guard.cli.stopped import telling_where_it_stopped

if TYPE_CHECKING:
    from apl_guard.trainer.evaluate.curves import Curve

_People = Annotated[int | None, typer.Option(min=1, help="At most this many seen, and this many unseen people.")]

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
        typer.Option(
            help="Folder for the finished model and for the work under way.", show_default="in the user's cache"
        ),
    ] = None,
    variant: Annotated[
        VariantName,
        typer.Option(
            help="base: from nothing; restyled: fine-tuned on inked drawings; continued: trained further. Both start "
            "from the base model in the same folder, or else from the shipped one."
        ),
    ] = VariantName.base,
    tiny: Annotated[bool, typer.Option("--tiny", help="Two steps of everything, to check that it runs.")] = False,
) -> None:
    """Train a model of the reference world; a stopped build continues.

    The base model takes hours on two CPU cores, a variant minutes. A GPU is used where there is one.

    Example: apl-guard minifaces build --variant base --output world
    """
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.one_run import only_run

    output = output or minifaces.cache_path()
    if variant is VariantName.base:
        from apl_guard.trainer.minifaces.build import build as build_world
        from apl_guard.trainer.minifaces.recipe import Recipe

        with only_run(output):
            folder = build_world(output, Recipe.tiny() if tiny else None)
    else:
        from apl_guard.trainer.minifaces.variants import Variant, VariantRecipe, build_variant
        from apl_guard.trainer.model.pipeline import open_pipe

        base = output / "base" if (output / "base").is_dir() else minifaces.model_path()
        recipe = VariantRecipe.tiny() if tiny else None
        kind: Variant = "restyled" if variant is VariantName.restyled else "continued"
        with only_run(output / kind):
            folder = build_variant(open_pipe(base), kind, output / kind, recipe)
    typer.echo(f"model: {folder}")


@app.command()
def card(
    world: Annotated[Path, typer.Argument(help="Folder of a finished build.", metavar="WORLD")],
    evaluation: Annotated[Path, typer.Option(help="What `apl-guard eval --format json` printed for its model.")],
) -> None:
    """Measure a built world and write its model card, README.md.

    Example: apl-guard minifaces card world --evaluation evaluation.json
    """
    from apl_guard.trainer.evaluate.world_card import read_evaluation, write_card

    path = write_card(world, read_evaluation(evaluation))
    typer.echo(f"card: {path}")


@app.command()
def tradeoff(
    prefixes: Annotated[
        list[Path], typer.Argument(help="Folders of prefixes of the shipped model, each with a name.", metavar="PREFIX")
    ],
    output: Annotated[Path, typer.Option(help="JSON to write.")] = Path("curves.json"),
    images_per_person: ImagesPerPerson = 2,
    people: _People = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Guidance = 3.0,
    seed: Annotated[int, seed_option("Seed of prompts and images.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Measure leak against attributes kept for several prefixes, as a curve for the report.

    Example: apl-guard minifaces tradeoff prefixes/coarse prefixes/attributes --output curves.json
    """
    from apl_guard.errors import InvalidInput
    from apl_guard.prefix import Prefix
    from apl_guard.storage import check_place
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.evaluate.curves import write_curves
    from apl_guard.trainer.evaluate.tradeoff import measure_tradeoff
    from apl_guard.trainer.model.pipeline import open_pipe

    check_place(output)
    named = {folder.resolve().name: Prefix.load(folder) for folder in prefixes}
    if len(named) < len(prefixes) or "no prefix" in named:
        raise InvalidInput("two have one name, or one is called 'no prefix'; points are called by it", where="prefixes")
    measurement: dict[str, Any] = {
        "images_per_person": images_per_person,
        "people_limit": people,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
    }
    pipe = open_pipe(minifaces.model_path())
    curve = measure_tradeoff(pipe, named, judges=minifaces.judges(), progress=not quiet, **measurement)
    write_curves(output, [curve], {"measurement": measurement})
    _print_points([curve])


def _print_points(curves: Sequence[Curve]) -> None:
    for curve in curves:
        for point in curve.points:
            shares = "   ".join(f"{name} {100 * point[name]:.1f} %" for name in curve.series)
            typer.echo(f"{point['label']:<14} {shares}")


class AxisName(StrEnum):
    """What is varied."""

    identities = "identities"
    vectors = "vectors"
    eta = "eta"
    share = "share"


@app.command()
def scale(
    output: Annotated[Path, typer.Option(help="Folder for prefixes, curves.json and curves.png.")] = Path("scale"),
    axis: Annotated[
        list[AxisName] | None,
        typer.Option(
            help="What to vary: identities, vectors, eta or share. May be repeated.",
            metavar="<axis>",
            show_default="all four",
        ),
    ] = None,
    value: Annotated[
        list[float] | None,
        typer.Option(help="A value of that axis, in place of the usual ones. May be repeated.", metavar="<float>"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of training options.", show_default="the shipped prefix's")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set an option of training. May be repeated.", metavar="NAME=VALUE"),
    ] = None,
    images_per_person: ImagesPerPerson = 2,
    people: _People = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the measurement.")] = 20,
    guidance: Guidance = 3.0,
    seed: Annotated[int, seed_option("Seed of prompts and images.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train and measure prefixes with other numbers of people and vectors, other η, other shares of people.

    Twelve trainings and evaluations; a stopped run continues when the same command is given again. curves.json and
    curves.png hold what is done so far, and `apl-guard eval --curves` shows it in a report. A run with another axis or
    value adds to them; another recipe or measurement needs another folder.

    Example: apl-guard minifaces scale --output scale --axis vectors

    Example: apl-guard minifaces scale --output small --axis identities --value 5 --value 10 --set steps=50 --people 10
    """
    from apl_guard.errors import ExtraMissing, InvalidInput
    from apl_guard.storage import check_place, write_file
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.config import TrainConfig
    from apl_guard.trainer.data.identities import load_identities
    from apl_guard.trainer.evaluate.curves import curves_so_far, draw_curves, merge, write_curves
    from apl_guard.trainer.evaluate.scale import AXES, measure_scale
    from apl_guard.trainer.model.pipeline import model_digest, open_pipe
    from apl_guard.trainer.one_run import only_run

    ExtraMissing.check("eval", "scipy", "matplotlib")
    names = [one.value for one in axis or ()] or list(AXES)
    if value and len(names) != 1:
        raise InvalidInput("values are of one axis; name it with --axis", where="--value")
    recipe = TrainConfig.load(config or minifaces.prefix_path() / "config.yaml").with_overrides(assignments or [])
    for name in ("curves.json", "curves.png"):
        check_place(output / name)  # here, for the first point may take hours

    pipe = open_pipe(minifaces.model_path())
    measurement: dict[str, Any] = {
        "images_per_person": images_per_person,
        "people_limit": people,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
    }
    settings = {"recipe": recipe.model_dump(), "measurement": measurement, "model": model_digest(pipe)}
    with only_run(output), telling_where_it_stopped():
        known = curves_so_far(output / "curves.json", settings)

        def keep(curves: list[Curve]) -> None:
            write_curves(output / "curves.json", merged := merge(known, curves), settings)
            write_file(output / "curves.png", draw_curves(merged))

        curves = measure_scale(
            pipe,
            recipe,
            load_identities(minifaces.identities_file()),
            output,
            {name: tuple(value) if value else AXES[name] for name in names},
            measured=keep,
            progress=not quiet,
            judges=minifaces.judges(),
            **measurement,
        )
    _print_points(curves)
    typer.echo(f"curves: {output / 'curves.json'}, {output / 'curves.png'}")


@app.command()
def sheet(
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("minifaces.png"),
    seed: Annotated[int, seed_option("Seed of the scenes.")] = 0,
) -> None:
    """Draw a sheet of the people, their twins and the objects of the reference world."""
    from apl_guard.storage import check_place, write_file
    from apl_guard.trainer.minifaces.sheet import draw_sheet
    from apl_guard.trainer.report.pictures import png

    check_place(output)
    write_file(output, png(draw_sheet(seed)))
    typer.echo(f"sheet: {output}")
