"""`apl-guard eval`: measure what a prefix hides and what it leaves alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Suite(StrEnum):
    """What to measure."""

    SEEN = "seen"
    UNSEEN = "unseen"
    GENERIC = "generic"
    INACTIVITY = "inactivity"
    GATED = "gated"
    ATTACKS = "attacks"
    ALL = "all"


class Format(StrEnum):
    """How to print the figures."""

    TABLE = "table"
    JSON = "json"


class Neutral(StrEnum):
    """What the neutral prompt keeps."""

    COARSE = "coarse"
    ATTRIBUTES = "attributes"


def evaluate(
    model: Annotated[str, typer.Option(help="A model of the reference world, or 'minifaces'.")],
    prefix: Annotated[str, typer.Option(help="Prefix folder or name; 'minifaces' is the shipped one.")],
    suite: Annotated[
        list[Suite] | None,
        typer.Option(help="What to measure; may be repeated.", show_default="seen, unseen and generic"),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Text file, one template with {name} a line, in place of the held-out prompts."),
    ] = None,
    images_per_person: Annotated[int, typer.Option(min=1, help="Pictures of each person in each arm.")] = 4,
    people: Annotated[int | None, typer.Option(min=1, help="At most so many people in a suite.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and pictures.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance.")] = 3.0,
    neutral: Annotated[Neutral, typer.Option(help="What the neutral prompt keeps.")] = Neutral.COARSE,
    format: Annotated[Format, typer.Option(help="How to print the figures.")] = Format.TABLE,
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write: pictures, tables, curves, versions and digests in one.")
    ] = None,
    curves: Annotated[
        list[Path] | None,
        typer.Option(help="Curves to show in the report, as `minifaces scale` and `tradeoff` write them."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder where pictures are kept.", show_default="in the user's cache")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Draw no progress bar.")] = False,
) -> None:
    """Measure a prefix on the reference world: leak, faces, attributes, scenes and generic drift.

    Suites: seen and unseen (people who are named), generic (prompts that name nobody), inactivity (those prompts
    guarded against plain, beside a few steps less), gated (H_c: a policy that guards only listed people).

    Pictures are kept: a stopped run goes on when the same command is given again.

    Example: apl-guard eval --model minifaces --prefix minifaces --suite seen --people 20 --report report.html
    """
    from apl_guard.errors import InvalidInput
    from apl_guard.prefix import Prefix
    from apl_guard.storage import write_file
    from apl_guard.trainer.evaluate import evaluate as run
    from apl_guard.trainer.evaluate.asking import read_templates
    from apl_guard.trainer.evaluate.curves import read_curves
    from apl_guard.trainer.evaluate.provenance import command
    from apl_guard.trainer.evaluate.suites import DEFAULT_SUITES, SUITES
    from apl_guard.trainer.evaluation_report import write_report
    from apl_guard.trainer.pipeline import open_pipe

    if curves and report is None:
        raise InvalidInput("curves are shown in a report; name its file with --report", where="--curves")
    lines = [curve for path in curves or () for curve in read_curves(path)]
    texts = read_templates(templates) if templates else None
    loaded = Prefix.load(prefix)
    result = run(
        open_pipe(model),
        loaded,
        list(SUITES) if Suite.ALL in (suite or ()) else [one.value for one in suite or ()] or DEFAULT_SUITES,
        images_per_person,
        people,
        seed,
        steps,
        guidance,
        neutral=neutral.value,
        templates=texts,
        folder=pictures,
        keep_images=report is not None,
        progress=not quiet,
    )
    if report is not None:
        write_file(report, write_report(result, command(), lines).encode())
        typer.echo(f"report: {report}", err=True)
    typer.echo(result.to_json() if format is Format.JSON else result.to_table())
