"""Options and arguments that several commands take."""

from __future__ import annotations

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from apl_guard.policy import built_in_policies
from apl_guard.storage import write_file

__all__ = [
    "Device",
    "Guidance",
    "ImagesPerPerson",
    "Json",
    "JsonLines",
    "Neutral",
    "Output",
    "PolicyName",
    "PolicyOption",
    "PrefixOption",
    "Quiet",
    "complete_policy",
    "put_error",
    "put_out",
    "seed_option",
]


class Neutral(StrEnum):
    """What stands for a name in the neutral prompt."""

    COARSE = "coarse"
    ATTRIBUTES = "attributes"


def complete_policy(incomplete: str) -> list[str]:
    """What a shell may complete the name of a policy to: built-in ones, and files. Where nothing fits, it completes
    folders and names with blanks by itself; what it is given, bash does not quote."""
    within = incomplete[: incomplete.rfind("/") + 1]
    try:
        entries = sorted(Path(within or ".").iterdir())
    except OSError:
        entries = []
    files = [f"{within}{entry.name}" for entry in entries if entry.suffix in (".yaml", ".yml")]
    names = [*built_in_policies(), *(file for file in files if shlex.quote(file) == file)]
    return [name for name in names if name.startswith(incomplete)]


def _silence_libraries(wanted: bool) -> bool:
    if wanted:
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        of_diffusers.disable_progress_bar()
        of_transformers.disable_progress_bar()
    return wanted


Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda.", show_default="a GPU if there is one")]
Guidance = Annotated[float, typer.Option(min=0, help="Classifier-free guidance.")]
ImagesPerPerson = Annotated[int, typer.Option(min=1, help="Images of each person with each prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Output = Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")]
PolicyName = Annotated[
    str,
    typer.Argument(
        help="Name of a built-in policy, or a policy file.", metavar="POLICY", autocompletion=complete_policy
    ),
]
PolicyOption = Annotated[
    str, typer.Option("--policy", help="Name of a built-in policy, or a policy file.", autocompletion=complete_policy)
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", help="Prefix folder or name.", show_default="the registered one that fits")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.", callback=_silence_libraries)]


def seed_option(help: str, **options: Any) -> Any:
    """The option of a seed, in the range of `TrainConfig.seed`, which torch and every part of the trainer take.

    That range says nothing to who reads the help, so the help is without it.

    Args:
        help: What the seed is of.
        options: Further ones of `typer.Option`.
    """
    return typer.Option(parser=_seed, metavar="<int>", help=help, **options)


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError as error:
        raise typer.BadParameter(f"found {text!r}; expected a whole number") from error
    if not -(2**62) <= seed < 2**62:
        raise typer.BadParameter(f"found {seed}; expected a number from -2^62 to 2^62 - 1")
    return seed


def put_out(text: str, output: Path | None) -> None:
    """Write a text to where `Output` says."""
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_file(output, text.encode())
        typer.echo(f"{output} written")


def put_error(text: str, color: str = typer.colors.RED) -> None:
    """Write a line to standard error. On a terminal it is coloured, unless NO_COLOR is set or the terminal is dumb.

    What a terminal would obey, such as in the name of a file that a stranger made, is written out.
    """
    text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    typer.echo(text if is_plain else typer.style(text, fg=color), err=True)
