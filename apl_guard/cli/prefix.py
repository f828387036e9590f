"""`apl-guard prefix`: the prefixes that the guard can find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from apl_guard.prefix import Prefix, find_path
from apl_guard.registry import PrefixRegistry, RegistryEntry

__all__ = ["app"]

app = typer.Typer(help="Register prefixes and look at them.", no_args_is_help=True)

_Registry = Annotated[
    Path | None,
    typer.Option(help="The registry folder.", envvar="APL_GUARD_REGISTRY", show_default="in the user's data folder"),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(no_args_is_help=True)
def register(
    folder: Annotated[Path, typer.Argument(help="The prefix folder that `apl-guard train` wrote.")],
    name: Annotated[str | None, typer.Option(help="What to call it.", show_default="its own name")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another of this name.")] = False,
    registry: _Registry = None,
) -> None:
    """Check a prefix and copy it to where the guard finds it.

    Example: apl-guard prefix register prefixes/sd15
    """
    entry = PrefixRegistry(registry).register(folder, name, replace=replace)
    typer.echo(f"registered {_line(entry)}\n  in {entry.path}")


@app.command("list")
def list_prefixes(registry: _Registry = None, as_json: _Json = False) -> None:
    """List the registered prefixes, and the one that is shipped.

    Example: apl-guard prefix list
    """
    entries = PrefixRegistry(registry).list()
    if as_json:
        typer.echo(json.dumps([_described(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        typer.echo(_line(entry))
    if not entries:
        typer.echo(f"none in {PrefixRegistry(registry).root}; register one with: apl-guard prefix register PREFIX")


@app.command(no_args_is_help=True)
def show(
    prefix: Annotated[str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.")],
    as_json: _Json = False,
) -> None:
    """Show what is known about a prefix.

    Example: apl-guard prefix show minifaces
    """
    path = find_path(prefix)
    loaded = Prefix.load(path)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "digest": loaded.digest, **loaded.metadata.model_dump(mode="json")}))
        return
    metadata = loaded.metadata
    typer.echo(f"{metadata.name}\n  path     {path}\n  digest   {loaded.digest}\n  created  {metadata.created}")
    for slot, width in metadata.widths.items():
        typer.echo(f"  {slot}: {loaded.n} vectors of width {width}, for encoder {metadata.fingerprints[slot].key}")
    for key, value in metadata.evaluation.items():
        typer.echo(f"  {key}: {json.dumps(value)}")


@app.command(no_args_is_help=True)
def verify(
    name: Annotated[str, typer.Argument(help="A name in the registry, or 'minifaces'.")],
    registry: _Registry = None,
) -> None:
    """Read a registered prefix again and check all of it.

    Example: apl-guard prefix verify sd15
    """
    typer.echo(f"ok {_line(PrefixRegistry(registry).verify(name))}")


def _line(entry: RegistryEntry) -> str:
    if entry.prefix is None:
        return f"{entry.name}  DAMAGED  {entry.problem}"
    prefix = entry.prefix
    encoders = ", ".join(f"{slot} {found.key}" for slot, found in prefix.metadata.fingerprints.items())
    return f"{entry.name}  {prefix.n} vectors  digest {prefix.digest[:12]}  for {encoders}"


def _described(entry: RegistryEntry) -> dict[str, object]:
    described: dict[str, object] = {"name": entry.name, "path": str(entry.path), "problem": entry.problem}
    if entry.prefix is not None:
        described |= {
            "digest": entry.prefix.digest,
            "metadata": entry.prefix.metadata.model_dump(mode="json"),
        }
    return described
