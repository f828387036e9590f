"""The list of prefixes that must not be used any more, `revoked.json` at the top of a registry."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apl_guard.errors import InvalidInput, PrefixInvalid, RegistryUnavailable
from apl_guard.prefix.layout import REVOKED_NAME
from apl_guard.prefix.tensorfile import parse_json, printable, read_file
from apl_guard.registry.writing import only_writer
from apl_guard.storage import write_file

__all__ = ["Revocation", "RevokedFile", "parse_revoked", "read_revoked", "revoke"]

MAX_REVOKED_BYTES = 1 << 20


class Revocation(BaseModel):
    """One prefix that must not be used, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    reason: Annotated[str, Field(max_length=500)]
    when: datetime


class RevokedFile(BaseModel):
    """The content of `revoked.json`. It only grows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["apl-guard-revoked/1"] = "apl-guard-revoked/1"
    revoked: tuple[Revocation, ...] = ()

    @property
    def reasons(self) -> dict[str, str]:
        """Digest → reason."""
        return {entry.digest: entry.reason for entry in self.revoked}


_EMPTY = RevokedFile()


def read_revoked(root: Path) -> RevokedFile:
    """Read the list of a registry's folder; an empty one where there is none.

    Raises:
        RegistryUnavailable: It is damaged, so nobody knows what was revoked.
    """
    try:
        os.lstat(os.path.join(root, REVOKED_NAME))  # on each call of a guard, so no more than one question
    except (FileNotFoundError, NotADirectoryError):
        return _EMPTY
    path = root / REVOKED_NAME
    try:
        return parse_revoked(read_file(path, limit=MAX_REVOKED_BYTES, follow_links=False), path)
    except PrefixInvalid as error:
        raise RegistryUnavailable(f"{error}; without the list nobody knows which prefixes were revoked") from error


def parse_revoked(content: bytes, where: Path) -> RevokedFile:
    """Read the list from the bytes of its file.

    Raises:
        PrefixInvalid: It is damaged.
    """
    try:
        return RevokedFile.model_validate(parse_json(content, "list of revoked prefixes", where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "revoked"
        raise PrefixInvalid(f"field '{printable(field)}': {first['msg']}", where=where) from error


def revoke(root: Path, digest: str, reason: str) -> RevokedFile:
    """Put a prefix on the list.

    Args:
        root: The registry's folder.
        digest: Of the prefix, 64 hexadecimal digits.
        reason: For those who will ask.

    Raises:
        InvalidInput: The digest is none, or the reason is too long.
        RegistryUnavailable: The list is damaged.
        StorageFailed: The list could not be written.
    """
    try:
        added = Revocation(digest=digest, reason=reason, when=datetime.now(UTC))
    except ValidationError as error:
        raise InvalidInput(
            "expected a digest of 64 hexadecimal digits and a reason of at most 500 characters", where="digest"
        ) from error
    with only_writer(root):
        known = read_revoked(root)
        if digest in known.reasons:
            return known
        both = RevokedFile(revoked=(*known.revoked, added))
        write_file(root / REVOKED_NAME, both.model_dump_json(indent=1).encode())
    return both
