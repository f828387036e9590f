"""`apl-guard selftest`: whether a model is guarded, before anybody uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.generate import open_model, place
from apl_guard.cli.options import Device, PolicyOption, PrefixOption
from apl_guard.guard.selftest import CANARIES

__all__ = ["selftest"]


def selftest(
    model: Annotated[str, typer.Option(help="Model folder, hub id, or 'minifaces' for the shipped model.")],
    policy: PolicyOption = "anonymize_faces",
    prefix: PrefixOption = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A canary prompt that the policy anonymizes. May be repeated.",
            metavar="<str>",
            show_default="two portraits",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps for each canary.")] = 1,
    audit: Annotated[Path | None, typer.Option(help="Folder for the records; without it none are kept.")] = None,
    device: Device = None,
) -> None:
    """Send canary prompts through the guarded model and show what each text encoder received.

    Ends with code 0 if the prefix was in front of every canary, 4 if not: run it before a service takes requests.

    Example: apl-guard selftest --model minifaces
    """
    from apl_guard.guard import Guard

    pipe = open_model(model)
    pipe.set_progress_bar_config(disable=True)
    place(pipe, device)
    guard = Guard(pipe, policy, prefix=prefix, audit=audit)
    result = guard.self_test(prompt or CANARIES, num_inference_steps=steps)
    typer.echo(f"guarded: prefix {result.prefix} in front of {result.prompts} canaries, {result.seconds:.1f} s")
    for slot, change in result.change.items():
        typer.echo(f"  {slot}: the prefix moves what it gives by at least {100 * change:.1f} % of its size")
