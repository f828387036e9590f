"""`apl-guard attack`: how long somebody who has the weights needs to undo a prefix."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from apl_guard.cli.options import Quiet, seed_option


class Searches(StrEnum):
    """For what to search."""

    TOKENS = "tokens"
    EMBEDDING = "embedding"
    ALL = "all"


def attack(
    model: Annotated[str, typer.Option(help="A model of the reference world, or 'minifaces'.")],
    prefix: Annotated[
        list[str],
        typer.Option(
            help="Prefix folder or name. May be repeated: others are compared with the first.", metavar="<str>"
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write: attack.json, attack.png and the curves so far.")],
    search: Annotated[
        Searches, typer.Option(help="Tokens in front of the prompt (text), or a pseudo-word in place of the name.")
    ] = Searches.ALL,
    people: Annotated[int, typer.Option(min=1, help="How many people to search for, up to 40.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each search.")] = 240,
    draw_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the images that are judged.")] = 20,
    withheld: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.5,
            help="Share of strangers' images that the output check may withhold: sets its threshold.",
        ),
    ] = 0.01,
    seed: Annotated[int, seed_option("Seed of searches and images.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Compute in bfloat16 if the hardware can.")] = False,
    quiet: Quiet = False,
) -> None:
    """Attack a prefix with access to the weights, and report after how many steps people are back.

    The report includes controls, without which the figures would prove nothing: people whom the model never saw, a UNet
    of random weights, and, for tokens, objects on the bare model that have words. A stopped run continues when the
    same command is given again. For attacks that need no weights: apl-guard eval --suite attacks.

    Example: apl-guard attack --model minifaces --prefix minifaces --prefix prefixes/hardened --output attack
    """
    import json

    import torch

    from apl_guard.errors import ExtraMissing, InvalidInput
    from apl_guard.prefix import Prefix
    from apl_guard.storage import check_place, write_file
    from apl_guard.trainer import minifaces
    from apl_guard.trainer.attacks.curve import measure_curves
    from apl_guard.trainer.attacks.page import draw_curves, to_table
    from apl_guard.trainer.attacks.reference import reference_check
    from apl_guard.trainer.attacks.search import Kind
    from apl_guard.trainer.evaluate.reference_world import open_reference_world
    from apl_guard.trainer.evaluate.setting import Setting
    from apl_guard.trainer.model.number_format import precision_of
    from apl_guard.trainer.one_run import only_run

    ExtraMissing.check("eval", "scipy", "matplotlib")
    if len(set(prefix)) < len(prefix):
        raise InvalidInput("a prefix is given twice", where="--prefix")
    prefixes = {name: Prefix.load(name) for name in prefix}
    pipe = open_reference_world(model)
    setting = Setting.of(
        pipe,
        prefixes[prefix[0]],
        minifaces.judges(),
        seed=seed,
        steps=draw_steps,
        precision=precision_of(pipe.unet.device, "auto") if fast else torch.float32,
        folder=None,
        progress=not quiet,
    )
    check_place(output / "attack.json")  # here, for the first search may take hours
    kinds: list[Kind] = [kind for kind in get_args(Kind) if search.value in (kind, Searches.ALL.value)]
    check = reference_check(seed, withheld)
    with only_run(output):
        found = measure_curves(setting, prefixes, kinds, people, steps, output, check)
        found["settings"]["withheld"] = withheld
        typer.echo(to_table(found))  # first: whatever may become of the files, the figures are not lost
        write_file(output / "attack.json", json.dumps(found, indent=2).encode())
        draw_curves(found, output / "attack.png")
    typer.echo(f"written to {output}: attack.json, attack.png")
