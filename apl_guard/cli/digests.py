"""How a prompt and a subject are looked for: records hold nothing of them but keyed digests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from apl_guard.cli.options import put_error
from apl_guard.errors import InvalidInput

if TYPE_CHECKING:
    from apl_guard.audit.index import Index

__all__ = ["digests_of", "note_missing"]


def digests_of(folder: Path, keys: Path | None, prompt: str | None, subject: str | None) -> list[list[str]]:
    """What a prompt and a subject may be called in records; one of each list has to stand there.

    Raises:
        InvalidInput: The folder holds no log, or the prompt is no text.
        AuditUnavailable: A digest key cannot be read.
    """
    from apl_guard.audit.digest_keys import DigestKeys
    from apl_guard.audit.subjects import SubjectKeys

    found = DigestKeys.of_log(folder, keys)
    digests = []
    if prompt is not None:
        digests.append(list(found.digests_of(_read_prompt() if prompt == "-" else prompt)))
    if subject is not None:
        digests.append([SubjectKeys(found.folder, key).name_of(subject) for key in found.kept().values()])
    return digests


def note_missing(folder: Path, keys: Path | None, index: Index) -> None:
    """Say under which digest keys nothing can be looked for any more, or nobody would be known to have asked."""
    from apl_guard.audit.digest_keys import DigestKeys

    if missing := DigestKeys.of_log(folder, keys).missing(index.digest_keys()):
        put_error(
            f"what was recorded under the digest key {', '.join(missing)}, which is not kept, is not in this answer",
            typer.colors.YELLOW,
        )


def _read_prompt() -> str:
    """A prompt from standard input, with the ends of its lines as they came, without the last.

    Raises:
        InvalidInput: It is no text.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8", "surrogatepass").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"byte {error.start} is no UTF-8; pass the prompt as text", where="--prompt") from error
