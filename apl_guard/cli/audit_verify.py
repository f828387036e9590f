"""`apl-guard audit verify`: the log, or a receipt, held against what it should be."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apl_guard.cli.audit_lines import line_of
from apl_guard.cli.options import Json, put_error
from apl_guard.cli.reading_bar import reading
from apl_guard.errors import InvalidInput
from apl_guard.storage import read_regular

__all__ = ["Folder", "Image", "VerifyCommand", "Witnesses", "verify"]

_EXIT_CODES = {"valid": 0, "tampered": 1, "torn": 2, "unverifiable": 3}
_USAGE = 4
_MAX_KEY_BYTES = 1 << 16

Folder = Annotated[Path, typer.Argument(help="The folder that `audit=` or `--audit` named.", metavar="LOG")]
Witnesses = Annotated[
    list[Path] | None,
    typer.Option("--witness", help="A folder that received the checkpoints. May be repeated.", metavar="<path>"),
]
Image = Annotated[Path | None, typer.Option(help="An image as it was released, in a file such as a PNG.")]
PublicKey = Annotated[
    str | None,
    typer.Option(help="The log's public key, in hex, or a copy of its log.json, from where nobody could change it."),
]


class VerifyCommand(typer.core.TyperCommand):
    """Wrong usage ends in 4, since 2 says something about the log."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "exit_code"):
                error.exit_code = _USAGE
            raise


def verify(
    folder: Annotated[Path, typer.Argument(help="The log, or a receipt that `prove` wrote.", metavar="LOG")],
    witness: Witnesses = None,
    public_key: PublicKey = None,
    image: Image = None,
    as_json: Json = False,
) -> None:
    """Check every record and every checkpoint, and compare the log with its witnesses.

    Exit codes: 0 valid, 1 tampered, 2 torn by a crash (the next start of a guard seals it), 3 no witness to compare
    with, 4 wrong usage. Records newer than the last checkpoint are counted and not vouched for. A receipt is compared
    with the witnesses as well, and with --image it has to say that this image was released. --json shows its records
    whole.

    Example: apl-guard audit verify /var/log/apl-guard --witness /mnt/witness
    """
    try:
        key = _read_public_key(public_key)
        if folder.is_file():
            verdict, text = _verify_receipt(folder, witness or [], key, image, as_json)
        elif image is not None and folder.is_dir():
            raise InvalidInput("goes with a receipt; in a log, find it by audit query --image", where="--image")
        else:
            verdict, text = _verify_log(folder, witness or [], key, as_json)
    except InvalidInput as error:
        put_error(f"error: {error}")
        raise typer.Exit(_USAGE) from None
    except OSError as error:
        put_error(f"error: {error.filename}: cannot be read ({error.strerror})")
        raise typer.Exit(_EXIT_CODES["unverifiable"]) from None
    _say(text)
    raise typer.Exit(_EXIT_CODES[verdict])


def _say(text: str) -> None:
    """Print it. The verdict is no other where the disk is full, or where `head` has read enough and closes the pipe."""
    try:
        typer.echo(text)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            put_error(f"error: the verdict cannot be printed ({error.strerror})")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes there when Python ends


def _verify_receipt(
    path: Path, witnesses: list[Path], public_key: str | None, image: Path | None, as_json: bool
) -> tuple[str, str]:
    """The verdict on a receipt, and what is printed."""
    from apl_guard.audit.images import CHANGED_PIXELS, digest_of_file, releases
    from apl_guard.audit.receipt import MAX_BYTES, check_receipt, missing_at

    for folder in witnesses:
        if not folder.is_dir():
            raise InvalidInput("there is no such folder", where=folder)
    digest = None if image is None else digest_of_file(image)
    verdict, text, records = "valid", "", []
    if public_key is None:
        verdict, text = "unverifiable", "a receipt is held against the log's public key; name it with --public-key"
    else:
        try:
            with path.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
            found = check_receipt(content, public_key)
            text = f"records: {len(found)}, " + (
                "in the log, and every witness holds the checkpoints over them"
                if witnesses
                else "signed with a key of the log; no witness was asked whether it knows them (--witness)"
            )
            if missing := missing_at(content, witnesses):
                verdict, text = "unverifiable", f"{missing[0]}: it is newer, or was never in the log that others know"
            if digest is not None and any(releases(record, digest) for record in found):
                text += "; they say that this image was released"
            elif digest is not None:
                verdict, text = "unverifiable", f"the receipt says nothing of this image; {CHANGED_PIXELS}"
            records = [dict(record.fields) for record in found]
        except InvalidInput as error:
            verdict, text = "tampered", str(error)
    if as_json:
        return verdict, json.dumps({"verdict": verdict, "text": text, "records": records}, indent=2)
    return verdict, "\n".join([f"{verdict}  {text}", *(f"  {line_of(record)}" for record in records)])


def _verify_log(folder: Path, witnesses: list[Path], public_key: str | None, as_json: bool) -> tuple[str, str]:
    """The verdict on a log, and what is printed."""
    from apl_guard.audit.verify import verify_log
    from apl_guard.audit.verify_index import check_index

    with reading(folder):
        report = verify_log(folder, witnesses, public_key)
    with reading(folder):
        check_index(folder, report)
    if as_json:
        return report.verdict, json.dumps(dataclasses.asdict(report), indent=2)
    lines = [
        f"{report.verdict}  records: {report.records}, writers: {report.writers}, checkpoints: {report.checkpoints}",
        *(f"  tampered  {finding}" for finding in report.findings),
        *(f"  torn      {torn}" for torn in report.torn),
        *(f"  note      {note}" for note in report.notes),
    ]
    if report.verdict == "unverifiable":
        lines.append(
            "  Nothing speaks against it, but it may have been written anew: "
            + ("the witness holds no checkpoint of it." if witnesses else "there is no witness (--witness) to ask.")
        )
    lines += [
        f"  witnessed {report.witnessed}, newer than that and not vouched for: {report.records - report.witnessed}",
        f"  newest checkpoint {report.newest_checkpoint}, public key {report.public_key}",
    ]
    return report.verdict, "\n".join(lines)


def _read_public_key(given: str | None) -> str | None:
    """A public key in hex, from the command line or a file.

    Raises:
        InvalidInput: It is neither.
    """
    from apl_guard.audit.checkpoint import Identity

    if given is None or re.fullmatch("[0-9a-f]{64}", given.strip().lower()):
        return None if given is None else given.strip().lower()
    try:
        content = read_regular(Path(given), _MAX_KEY_BYTES)
        # What mail programs and editors do to a copy changes no key.
        return Identity.parse(content.removeprefix(codecs.BOM_UTF8).strip() + b"\n").root
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "expected 64 hex digits or a copy of log.json, found neither "
            f"({getattr(error, 'strerror', None) or error})",
            where="--public-key",
        ) from error
