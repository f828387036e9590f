"""`apl-guard eval`: measure what a prefix hides and what it leaves alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apl_guard.cli.options import Neutral, Quiet, complete_policy, put_error, seed_option

if TYPE_CHECKING:
    from apl_guard.trainer.evaluate.apl2026.faces import FaceJudge


class Suite(StrEnum):
    """What to measure."""

    SEEN = "seen"
    UNSEEN = "unseen"
    GENERIC = "generic"
    INACTIVITY = "inactivity"
    GATED = "gated"
    ATTACKS = "attacks"
    PERSONALISED = "personalised"
    TRANSFER = "transfer"
    ALL = "all"


class Protocol(StrEnum):
    """Whose way of measuring."""

    APL_2026 = "apl-2026"


class Format(StrEnum):
    """How to print the figures."""

    TABLE = "table"
    JSON = "json"


_WORLD = "On the reference world"
_OTHERS = "On any model"


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Model folder, hub id, or 'minifaces'.")],
    prefix: Annotated[str, typer.Option(help="Prefix folder or name; 'minifaces' is the shipped one.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy under which the guard acts, a name or a file.",
            show_default="the strictest built-in one that permits what is asked",
            autocompletion=complete_policy,
        ),
    ] = None,
    suite: Annotated[
        list[Suite] | None,
        typer.Option(
            help="What to measure: one of the above, or all. May be repeated.",
            metavar="<suite>",
            show_default="seen, unseen and generic",
            rich_help_panel=_WORLD,
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            help="Text file, one template with {name} a line, in place of the held-out prompts.", rich_help_panel=_WORLD
        ),
    ] = None,
    images_per_person: Annotated[
        int, typer.Option(min=1, help="Images of each person in each arm.", rich_help_panel=_WORLD)
    ] = 4,
    seed: Annotated[int, seed_option("Seed of prompts and images.", rich_help_panel=_WORLD)] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.", rich_help_panel=_WORLD)] = 25,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance.", rich_help_panel=_WORLD)] = 3.0,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            help="Measure by the protocol of the paper's authors, in place of suites.", rich_help_panel=_OTHERS
        ),
    ] = None,
    identities: Annotated[
        list[Path] | None,
        typer.Option(
            help="YAML file of people, as for training; each is a group. May be repeated.",
            metavar="<path>",
            rich_help_panel=_OTHERS,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="Folder with a folder of reference images for each person.", rich_help_panel=_OTHERS),
    ] = None,
    references_per_person: Annotated[
        int, typer.Option(min=1, help="How many of these to use for each person.", rich_help_panel=_OTHERS)
    ] = 1,
    detector: Annotated[
        Path | None, typer.Option(help="Face detector: ONNX file of YuNet or SCRFD.", rich_help_panel=_OTHERS)
    ] = None,
    recogniser: Annotated[
        Path | None, typer.Option(help="Face recogniser: ONNX file of SFace or ArcFace.", rich_help_panel=_OTHERS)
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model, to measure quality.", rich_help_panel=_OTHERS)
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Text file of captions without names, for quality.", show_default="built in", rich_help_panel=_OTHERS
        ),
    ] = None,
    people: Annotated[int | None, typer.Option(min=1, help="At most this many people in a suite or group.")] = None,
    neutral: Annotated[Neutral, typer.Option(help="What the neutral prompt keeps.")] = Neutral.COARSE,
    format: Annotated[Format, typer.Option(help="How to print the figures.")] = Format.TABLE,
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write, with images, tables, curves, versions and digests.")
    ] = None,
    curves: Annotated[
        list[Path] | None,
        typer.Option(
            help="Curves to show in the report, as `minifaces scale` and `tradeoff` write them. May be repeated.",
            metavar="<path>",
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder where images are kept.", show_default="in the user's cache")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a prefix: leak, faces, attributes, scenes, and what happens to other prompts.

    The reference world is measured by suites: seen and unseen (people who are named), generic (prompts that name
    nobody), inactivity (how far those change, compared with fewer steps), gated (H_c, under a policy that guards only
    listed people), attacks (what black-box attacks bring back), personalised (people added after the prefix was
    trained), transfer (derived models). The last two train models first, and keep them.

    Any model that can be trained on is measured by the protocol of the paper's authors; the reference world can
    be, too.

    Images are kept: a stopped run continues when the same command is given again.

    Example: apl-guard eval --model minifaces --prefix minifaces --suite seen --people 20 --report report.html

    Example: apl-guard eval --model sd15 --prefix prefixes/sd15 --protocol apl-2026 --identities people.yaml
    --references faces --detector yunet.onnx --recogniser sface.onnx --clip clip-vit-large-patch14
    """
    from apl_guard.errors import ExtraMissing, InvalidInput
    from apl_guard.prefix import Prefix
    from apl_guard.storage import check_place, write_file
    from apl_guard.trainer.evaluate.curves import read_curves
    from apl_guard.trainer.evaluate.doubts import doubts
    from apl_guard.trainer.evaluate.page import write_report
    from apl_guard.trainer.evaluate.provenance import command
    from apl_guard.trainer.evaluate.reference_world import open_reference_world

    ExtraMissing.check("eval", "scipy")
    _refuse_what_nobody_reads(context, protocol)
    if curves and report is None:
        raise InvalidInput("curves are shown in a report; name its file with --report", where="--curves")
    if report is not None:
        check_place(report)
    lines = [curve for path in curves or () for curve in read_curves(path)]
    loaded = Prefix.load(prefix)
    shared: dict[str, Any] = {
        "policy": policy,
        "people_limit": people,
        "neutral": neutral.value,
        "folder": pictures,
        "keep_images": report is not None,
        "progress": not quiet,
    }
    if protocol is None:
        from apl_guard.trainer.evaluate import evaluate as run
        from apl_guard.trainer.evaluate.asking import read_templates
        from apl_guard.trainer.evaluate.suites import DEFAULT_SUITES
        from apl_guard.trainer.suites import SUITES, choose

        named = SUITES if Suite.ALL in (suite or ()) else [one.value for one in suite or ()]
        shared |= {
            "suites": choose(named) or DEFAULT_SUITES,
            "templates": read_templates(templates) if templates else None,
            "images_per_person": images_per_person,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
        }
        result = run(open_reference_world(model), loaded, **shared)
    else:
        from apl_guard.trainer.evaluate.apl2026.run import evaluate_apl_2026, require_together
        from apl_guard.trainer.model.pipeline import open_pipe

        if references is None and _is_typed(context, "references_per_person"):
            raise InvalidInput(
                "says how many reference images; name their folder with --references", where="--references-per-person"
            )
        shared |= {
            "faces": _open_faces(detector, recogniser),
            "identities": identities or [],
            "references": references,
            "references_per_person": references_per_person,
            **_quality(clip, captions),
        }
        # Here, for opening a model may take minutes.
        require_together(shared["identities"], references, shared["faces"])
        pipe = open_pipe(model, precision="auto") if identities else open_reference_world(model)
        result = evaluate_apl_2026(pipe, loaded, **shared)
    # First: whatever may become of the report, the figures are not lost.
    typer.echo(result.to_json() if format is Format.JSON else result.to_table())
    for doubt in doubts(result):
        put_error(f"warning: {doubt}", typer.colors.YELLOW)
    if report is not None:
        write_file(report, write_report(result, command(), lines).encode())
        typer.echo(f"report: {report}", err=True)


def _refuse_what_nobody_reads(context: typer.Context, protocol: Protocol | None) -> None:
    """Options of suites beside a protocol, and the other way round.

    Raises:
        InvalidInput: There is one.
    """
    from apl_guard.errors import InvalidInput

    panel = _OTHERS if protocol is None else _WORLD
    for parameter in context.command.params:
        if getattr(parameter, "rich_help_panel", None) != panel or parameter.name is None:
            continue
        if _is_typed(context, parameter.name):
            reason = "belongs to a protocol; add --protocol apl-2026" if protocol is None else "is set by the protocol"
            raise InvalidInput(reason, where=parameter.opts[0])


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _open_faces(detector: Path | None, recogniser: Path | None) -> FaceJudge | None:
    """The recogniser that was named, if one was."""
    from apl_guard.errors import InvalidInput
    from apl_guard.trainer.evaluate.apl2026.recognisers import open_faces

    if (detector is None) != (recogniser is None):
        raise InvalidInput("one without the other; give both", where="--detector and --recogniser")
    return None if detector is None or recogniser is None else open_faces(detector, recogniser)


def _quality(clip: Path | None, captions: Path | None) -> dict[str, Any]:
    """What quality is measured by: nothing, where no CLIP was named."""
    from apl_guard.errors import InvalidInput
    from apl_guard.trainer.data.captions import generic_captions
    from apl_guard.trainer.data.folders import read_prompts
    from apl_guard.trainer.evaluate.apl2026.clip import Clip

    if clip is None:
        if captions is not None:
            raise InvalidInput("captions are for quality, which is measured by CLIP; name its folder", where="--clip")
        return {}
    return {
        "clip": Clip(clip),
        "captions": read_prompts(captions) if captions is not None else generic_captions(500, seed=0),
    }
