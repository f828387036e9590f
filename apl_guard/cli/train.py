"""`apl-guard train`: learn a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from apl_guard.cli.options import Neutral, Quiet, put_error
from apl_guard.cli.stopped import telling_where_it_stopped

_HALF_WAY = 0.5
"""Of the gap. The prefix that ships closes 0.85 of it."""


class TrainCommand(typer.core.TyperCommand):
    """Its help ends with all that `--set` and `--config` reach."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from apl_guard.trainer.config import TrainConfig

        options = []
        for name, field in TrainConfig.model_fields.items():
            words = f" ({'|'.join(get_args(field.annotation))})" if get_origin(field.annotation) is Literal else ""
            default = "" if field.default is None else field.default
            options.append(f"{name}={default}{words}  {' '.join((field.description or '').split())}")
        self.epilog = "\n\n".join(["Options for --set and --config, with their defaults:", *options])
        super().format_help(ctx, formatter)


def train(
    model: Annotated[
        str,
        typer.Option(
            help="Model folder (Stable Diffusion, SDXL, SD3, Flux.1, others), hub id, or 'minifaces', the shipped one."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The prefix folder to write.")],
    identities: Annotated[
        Path | None, typer.Option(help="YAML file of people. Needed for every model but 'minifaces'.")
    ] = None,
    generic: Annotated[
        Path | None,
        typer.Option(help="Text file of prompts, or folder of images with captions.", show_default="built-in prompts"),
    ] = None,
    neutral: Annotated[
        Neutral | None,
        typer.Option(
            help="What replaces a name in the target prompt: only the sex, or all attributes.", show_default="coarse"
        ),
    ] = None,
    adversarial: Annotated[
        bool,
        typer.Option(
            "--adversarial",
            help="Adversarial training, as --set adversarial=4: attack half of the named prompts in each step.",
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set an option, as in --set lr=1e-2. May be repeated.", metavar="NAME=VALUE"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be done, and how long it takes.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an unfinished run in the output folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a prefix for a model. A stopped run continues when the same command is given again.

    Example: apl-guard train --model minifaces --output prefixes/mine --set n_vectors=5
    """
    from apl_guard.errors import InvalidInput
    from apl_guard.trainer.config import TrainConfig

    options = TrainConfig.load(config) if config else TrainConfig()
    flags = [f"neutral={neutral.value}"] if neutral else []
    flags += ["adversarial=4"] if adversarial else []
    options = options.with_overrides([*flags, *(assignments or [])])
    if identities is None:
        if model != "minifaces":
            raise InvalidInput("missing; give a YAML file of people", where="--identities")
        from apl_guard.trainer import minifaces

        identities = minifaces.identities_file()
    if dry_run:
        from apl_guard.trainer.train.plan import make_plan

        typer.echo(str(make_plan(options, model, identities, generic)))
        return

    from apl_guard.trainer.train import train as run

    with telling_where_it_stopped():
        result = run(options, model, identities, generic, output, restart=restart, progress=not quiet)
    measurement = result.measurement
    typer.echo(
        f"{result.folder}: identity gap closed {100 * measurement.gap_closed:.1f} %, "
        f"generic drift {100 * measurement.generic_drift:.1f} %, from step {result.step} of {result.steps}"
    )
    # Whatever it hides, it fits the model and would be used like any other.
    if measurement.gap_closed <= 0:
        put_error(
            "warning: this prefix brings names no nearer to their neutral prompts, so it hides nobody. Do not register "
            "it; lower lr, or train for more steps",
            typer.colors.YELLOW,
        )
    elif measurement.gap_closed < _HALF_WAY:
        put_error(
            "warning: this prefix brings names less than half of the way to their neutral prompts, so people may be "
            "recognised. Before you register it, measure it with apl-guard eval, or train for more steps",
            typer.colors.YELLOW,
        )
