"""The folder of registered prefixes, in which the guard finds the one that fits a text encoder.

One sub-folder for each prefix, named as the prefix is. Other processes may add to it at any time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apl_guard.errors import InvalidInput, PrefixInvalid, PrefixNotFound
from apl_guard.fingerprint import Fingerprint
from apl_guard.prefix import FILE_NAME, SHIPPED_NAME, Prefix, find_path, registry_root, shipped_path
from apl_guard.storage import write_folder

__all__ = ["PrefixRegistry", "RegistryEntry"]


@dataclass(frozen=True)
class RegistryEntry:
    """One registered prefix, or what is wrong with it."""

    name: str
    path: Path
    prefix: Prefix | None
    problem: str | None = None


class PrefixRegistry:
    """Registered prefixes.

    Args:
        root: The folder. None stands for `APL_GUARD_REGISTRY`, or a folder among the user's data.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = registry_root() if root is None else Path(root)
        self._lock = threading.Lock()
        self._read: dict[Path, tuple[tuple[int, int, int], RegistryEntry]] = {}

    def register(self, folder: str | Path, name: str | None = None, *, replace: bool = False) -> RegistryEntry:
        """Check a prefix and copy it into the registry.

        Args:
            folder: The prefix folder that training wrote.
            name: What to call it; its own name unless given.
            replace: Take the place of another prefix of this name.

        Raises:
            PrefixInvalid: The prefix is missing or damaged.
            InvalidInput: The name is taken by another prefix, reserved or malformed.
            StorageFailed: The registry could not be written.
        """
        path = find_path(folder)
        prefix = Prefix.load(path)
        name = prefix.metadata.name if name is None else name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name == SHIPPED_NAME:
            raise InvalidInput(
                f"'{name}' is reserved or malformed; use letters, digits, '.', '_' and '-'", where="name"
            )
        target = self.root / name
        if (target / FILE_NAME).exists() and not replace:
            taken = self._entry(target)
            if taken.prefix is None or taken.prefix.digest != prefix.digest:
                raise InvalidInput(
                    f"'{name}' is another prefix already; choose another name, or replace it", where="name"
                )
        source = path if path.is_dir() else path.parent
        card = source / "card.md"
        files = {card.name: card.read_bytes()} if card.is_file() else {}
        files[FILE_NAME] = (source / FILE_NAME if path.is_dir() else path).read_bytes()
        write_folder(target, files)
        return self.verify(name)

    def list(self) -> tuple[RegistryEntry, ...]:
        """Every registered prefix by name, damaged ones with their problem; the shipped one last."""
        folders = sorted(p for p in self.root.iterdir() if not p.name.startswith(".")) if self.root.is_dir() else []
        entries = [self._entry(folder) for folder in folders if (folder / FILE_NAME).is_file()]
        shipped = shipped_path()
        if shipped is not None:
            entries.append(self._entry(shipped, SHIPPED_NAME))
        return tuple(entries)

    def find(self, fingerprints: Fingerprint | Mapping[str, Fingerprint]) -> Prefix:
        """Find the prefix for a pipe's text encoders. Of several, the one made last.

        Args:
            fingerprints: Slot → fingerprint of the text encoder in it; one alone stands for `text_encoder`.

        Raises:
            PrefixNotFound: There is none. The message holds the fingerprint and the command that makes one.
        """
        if isinstance(fingerprints, Fingerprint):
            fingerprints = {"text_encoder": fingerprints}
        entries = self.list()
        fitting = [e.prefix for e in entries if e.prefix and e.prefix.metadata.fingerprints == fingerprints]
        if fitting:
            return max(fitting, key=lambda prefix: prefix.metadata.created)
        raise self.nothing_for(fingerprints)

    def nothing_for(self, fingerprints: Mapping[str, Fingerprint]) -> PrefixNotFound:
        """The error that says which text encoders no prefix is there for, and how to make one."""
        entries = self.list()
        damaged = sum(entry.prefix is None for entry in entries)
        note = f" ({damaged} damaged: see `apl-guard prefix list`)" if damaged else ""
        looked_for = ", ".join(f"{slot} {found.key}" for slot, found in sorted(fingerprints.items()))
        return PrefixNotFound(
            f"no prefix for {looked_for} among the {len(entries)} known{note}; make one with: "
            "apl-guard train --model MODEL --identities people.yaml --output PREFIX "
            "&& apl-guard prefix register PREFIX",
            fingerprint=next(iter(fingerprints.values()), None),
        )

    def get(self, name: str) -> Prefix:
        """Read a prefix by its name.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
        """
        return Prefix.load(self._path(name))

    def verify(self, name: str) -> RegistryEntry:
        """Read a prefix again from disk and check all of it.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
        """
        path = self._path(name)
        return RegistryEntry(name, path, Prefix.load(path))

    def _path(self, name: str) -> Path:
        if name == SHIPPED_NAME:
            return find_path(name)
        path = self.root / name
        if path.parent != self.root or not (path / FILE_NAME).is_file():
            raise PrefixInvalid("no prefix of this name; `apl-guard prefix list` shows the names", where=name)
        return path

    def _entry(self, folder: Path, name: str | None = None) -> RegistryEntry:
        """Read a folder, or remember it from the last time if its file is the same."""
        try:
            status = (folder / FILE_NAME).stat()
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
            with self._lock:
                known = self._read.get(folder)
            if known is not None and known[0] == state:
                return known[1]
            entry = RegistryEntry(name or folder.name, folder, Prefix.load(folder))
        except OSError as error:
            return RegistryEntry(name or folder.name, folder, None, error.strerror)
        except PrefixInvalid as error:
            entry = RegistryEntry(name or folder.name, folder, None, str(error))
        with self._lock:
            self._read[folder] = (state, entry)
        return entry
