"""`apl-guard policy`: the policies there are."""

from __future__ import annotations

from typing import Annotated

import typer

from apl_guard.policy import Policy, built_in_policies

__all__ = ["app"]

app = typer.Typer(help="Look at policies.", no_args_is_help=True)


@app.command("list")
def list_policies() -> None:
    """List the built-in policies.

    Example: apl-guard policy list
    """
    for name in sorted(built_in_policies()):
        policy = Policy.load(name)
        typer.echo(f"{name}  version {policy.version}  {policy.mode.value}  {policy.metadata.description}")


@app.command("show", no_args_is_help=True)
def show_policy(
    policy: Annotated[str, typer.Argument(help="Name of a built-in policy, or a policy file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy and show what it says.

    Example: apl-guard policy show anonymize_faces
    """
    loaded = Policy.load(policy)
    if as_json:
        typer.echo(loaded.model_dump_json(indent=2))
        return
    typer.echo(f"{loaded.name}  version {loaded.version}  {loaded.mode.value}  digest {loaded.digest[:12]}")
    if loaded.metadata.description:
        typer.echo(loaded.metadata.description)
    for rule in loaded.rules:
        channels = ", ".join(channel.value for channel in rule.when.channels)
        typer.echo(f"  {rule.then.action.value:<14}{channels}  ({rule.id})")
    typer.echo(f"  {'block':<14}every other channel")
