"""`apl-guard audit keys`: the keys of the digests under which prompts are on record."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from apl_guard.cli.audit_proofs import Keys
from apl_guard.cli.audit_verify import Folder, Witnesses
from apl_guard.cli.options import Json

__all__ = ["app"]

app = typer.Typer(
    help="List, rotate and destroy the keys of the digests under which prompts are recorded.",
    epilog="Begin with: apl-guard audit keys list /var/log/apl-guard",
    no_args_is_help=True,
)


@app.command("list", no_args_is_help=True)
def list_keys(folder: Folder, keys: Keys = None, as_json: Json = False) -> None:
    """List the digest keys that are kept, by the ids that records give.

    Example: apl-guard audit keys list /var/log/apl-guard
    """
    from apl_guard.audit.digest_keys import DigestKeys

    in_use, *older = DigestKeys.of_log(folder, keys).kept()
    if as_json:
        typer.echo(json.dumps({"in_use": in_use, "kept": older}))
        return
    for id, state in [(in_use, "in use"), *((id, "kept") for id in older)]:
        typer.echo(f"{id}  {state}")


@app.command("rotate", no_args_is_help=True)
def rotate_key(folder: Folder, witness: Witnesses = None, keys: Keys = None) -> None:
    """Put a new digest key in use, at once and for every guard that writes to the log. The log records it.

    The key before it is kept, so that records made with it can still be found by their prompt or subject, until
    you destroy it.

    Example: apl-guard audit keys rotate /var/log/apl-guard --witness /mnt/witness
    """
    from apl_guard.audit.rotate import rotate

    before, after = rotate(folder, witnesses=witness or (), keys=keys)
    typer.echo(f"key {after} is in use, {before} is kept")


@app.command("destroy", no_args_is_help=True)
def destroy_key(
    folder: Folder,
    key: Annotated[str, typer.Argument(help="Id of a key that is no longer in use.", metavar="KEY")],
    witness: Witnesses = None,
    keys: Keys = None,
) -> None:
    """Destroy a digest key that is no longer in use. Nobody can look for prompts in its records any more.

    The log verifies as before. Erase subjects that were recorded under it first, or by --decision later. This does
    not reach copies of the key in backups: destroy them too.

    Example: apl-guard audit keys destroy /var/log/apl-guard 3f0c9a7b12de4510
    """
    from apl_guard.audit.rotate import destroy_digest_key

    destroy_digest_key(folder, key, witnesses=witness or (), keys=keys)
    typer.echo(f"destroyed key {key}: nobody can look for the prompts and subjects that were recorded under it")
