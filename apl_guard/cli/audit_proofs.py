"""`apl-guard audit prove | consistency | erase | reveal`: what the log proves, and what it forgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from apl_guard.cli.audit_verify import Folder, Image, Witnesses
from apl_guard.cli.options import Output, put_out
from apl_guard.cli.reading_bar import reading
from apl_guard.errors import InvalidInput

__all__ = ["Keys", "consistency", "erase", "prove", "reveal"]

Keys = Annotated[Path | None, typer.Option(help="The log's keys.", show_default="the folder keys in the log")]


def prove(
    folder: Folder,
    decision: Annotated[
        str | None,
        typer.Argument(help="Id of the decision, or of a guard whose policies are to be proved.", metavar="ID"),
    ] = None,
    image: Image = None,
    output: Output = None,
) -> None:
    """Write a receipt for one image: its records, and the proof that they are in the log.

    The image itself will do in place of the id, as long as its pixels are those that were released.

    With the id of a guard, from `audit policies`, it proves which policies were in force and since when.

    Anybody checks it with the log's public key: apl-guard audit verify receipt.json --public-key KEY

    Example: apl-guard audit prove /var/log/apl-guard 5f0c… --output receipt.json
    """
    from apl_guard.audit.images import digest_of_file, find_image
    from apl_guard.audit.receipt import prove as make

    if (decision is None) == (image is None):
        raise InvalidInput("expected the id of a decision, or --image", where="prove")
    if image is not None:
        digest = digest_of_file(image)
        with reading(folder):
            decision = find_image(folder, digest)
    with reading(folder):
        receipt = make(folder, str(decision))
    put_out(json.dumps(receipt, indent=2) + "\n", output)


def consistency(
    folder: Folder,
    first: Annotated[int, typer.Argument(help="Number of the earlier checkpoint.", metavar="FIRST")],
    second: Annotated[int, typer.Argument(help="Number of the later checkpoint.", metavar="SECOND")],
    output: Output = None,
) -> None:
    """Prove that a later checkpoint continues an earlier one.

    Example: apl-guard audit consistency /var/log/apl-guard 12 4711
    """
    from apl_guard.audit.receipt import prove_consistency

    put_out(json.dumps(prove_consistency(folder, first, second), indent=2) + "\n", output)


def erase(
    folder: Folder,
    subject: Annotated[str | None, typer.Option(help="Who asked, as your platform called it.")] = None,
    decision: Annotated[
        str | None,
        typer.Option(help="Id of one of the subject's decisions. The prompts of its others are erased with it."),
    ] = None,
    witness: Witnesses = None,
    keys: Keys = None,
) -> None:
    """Destroy the key under which the prompts of a subject were recorded. The log records it.

    The log verifies as before. This does not reach copies of the key in backups: destroy them too.

    Example: apl-guard audit erase /var/log/apl-guard --subject account-7 --witness /mnt/witness
    """
    from apl_guard.audit.erase import erase as destroy

    if (subject is None) == (decision is None):
        raise InvalidInput("expected one of --subject and --decision", where="erase")
    with reading(folder):
        destroyed = destroy(folder, subject=subject, decision_id=decision, witnesses=witness or (), keys=keys)
    for kid in destroyed:
        typer.echo(f"destroyed key {kid}: nobody can read the prompts that were recorded under it")


def reveal(
    folder: Folder,
    decision: Annotated[str | None, typer.Argument(help="Id of the decision.", show_default=False)] = None,
    subject: Annotated[str | None, typer.Option(help="Instead, all decisions of this subject, one a line.")] = None,
    witness: Witnesses = None,
    keys: Keys = None,
) -> None:
    """Show the prompts of a decision, if they were recorded and not erased. The log records that you did.

    Example: apl-guard audit reveal /var/log/apl-guard 5f0c…
    """
    from apl_guard.audit.erase import reveal as read
    from apl_guard.audit.erase import reveal_subject

    if (subject is None) == (decision is None):
        raise InvalidInput("expected the id of a decision, or --subject", where="reveal")
    shown: list[Any] = []
    with reading(folder):
        if subject is not None:
            found = reveal_subject(folder, subject, witnesses=witness or (), keys=keys)
            shown = [{n: r[n] for n in ("decision_id", "timestamp")} | {"text": texts} for r, texts in found]
        elif (texts := read(folder, str(decision), witnesses=witness or (), keys=keys)) is not None:
            shown = [texts]
    for each in shown:
        typer.echo(json.dumps(each))
    if not shown:
        typer.echo("not recorded, or erased")
