"""One registered prefix: its files, read once, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.encoder.fingerprint import Sha256
from apl_guard.errors import PrefixInvalid
from apl_guard.prefix import Prefix
from apl_guard.prefix.layout import CARD_NAME, ENTRY_NAME, FILE_NAME, NAME_PATTERN, SIGNATURE_NAME
from apl_guard.prefix.tensorfile import parse_model, read_file

__all__ = ["LIMITS_BESIDE", "MAX_CARD_BYTES", "EntryFile", "RegistryEntry", "read_entry", "state_of"]

MAX_CARD_BYTES = 1 << 20
LIMITS_BESIDE = {ENTRY_NAME: 16 << 10, CARD_NAME: MAX_CARD_BYTES, SIGNATURE_NAME: 64 << 10}
"""What may stand beside the prefix, and the most bytes of each."""


class EntryFile(BaseModel):
    """`entry.json`: which prefix this is. A signature covers it, so that no version can be passed off as another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["apl-guard-entry/1"] = "apl-guard-entry/1"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[int, Field(ge=1, strict=True)]
    digest: Sha256
    """Of the prefix."""
    registered: datetime


@dataclass(frozen=True)
class RegistryEntry:
    """One registered prefix, or what is wrong with it."""

    name: str
    path: Path
    prefix: Prefix | None
    problem: str | None = None
    version: int = 0
    """Counted up by the registry; 0 for a prefix that no registry has numbered."""
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Name → content of what a signature is about, as it was read."""
    signature: bytes | None = field(default=None, repr=False)
    state: object = field(default=None, repr=False, compare=False)
    """What changes when a file of the folder changes."""

    @property
    def whole(self) -> Prefix:
        """The prefix.

        Raises:
            PrefixInvalid: It is damaged.
        """
        if self.prefix is None:
            raise PrefixInvalid(self.problem or "damaged", where=self.name)
        return self.prefix

    @property
    def all_files(self) -> dict[str, bytes]:
        """Name → content of everything, in the order in which it may be written: the prefix comes last."""
        signed = {} if self.signature is None else {SIGNATURE_NAME: self.signature}
        rest = {name: content for name, content in self.files.items() if name != FILE_NAME}
        return signed | rest | {FILE_NAME: self.files[FILE_NAME]}


def state_of(folder: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file of the folder changes.

    Raises:
        OSError: There is no prefix.
    """
    (folder / FILE_NAME).lstat()
    states: list[tuple[int, int, int] | None] = []
    for name in (FILE_NAME, *LIMITS_BESIDE):
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            states.append(None)
        else:
            states.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(states)


def read_entry(folder: Path, name: str | None, version: int) -> RegistryEntry:
    """Read the folder of one version and check all of it but the signature.

    Args:
        folder: The folder.
        name: The name that it is registered under; None takes the one that it says.
        version: The version that its place says it is; 0 where the place says nothing.

    Raises:
        PrefixInvalid: Something is missing or damaged, or `entry.json` is about another prefix.
    """
    state = state_of(folder) if (folder / FILE_NAME).exists() else None
    files = {FILE_NAME: read_file(folder / FILE_NAME, follow_links=False)}
    for other, limit in LIMITS_BESIDE.items():
        if (folder / other).exists():
            files[other] = read_file(folder / other, limit=limit, follow_links=False)
    signature = files.pop(SIGNATURE_NAME, None)
    prefix = Prefix.parse(files[FILE_NAME], where=folder / FILE_NAME)
    if ENTRY_NAME in files:
        said = parse_model(EntryFile, files[ENTRY_NAME], "entry", folder / ENTRY_NAME)
        found = (said.name, said.version, said.digest)
        expected = (name or said.name, version or said.version, prefix.digest)
        if found != expected:
            raise PrefixInvalid(
                f"is about version {said.version} of '{said.name}' with digest {said.digest[:12]}, expected "
                f"version {expected[1]} of '{expected[0]}' with digest {prefix.digest[:12]}",
                where=folder / ENTRY_NAME,
            )
        name, version = said.name, said.version
    return RegistryEntry(name or prefix.metadata.name, folder, prefix, None, version, files, signature, state)
