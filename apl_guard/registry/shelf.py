"""The folder of a registry: reading and adding versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from apl_guard.errors import InvalidInput, PrefixInvalid
from apl_guard.prefix.layout import is_name, versions
from apl_guard.printable import printable
from apl_guard.registry.entry import RegistryEntry, read_entry, state_of
from apl_guard.storage import write_folder

__all__ = ["Shelf"]


class Shelf:
    """The folder of a registry.

    Args:
        root: The folder. It need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, RegistryEntry] = {}

    def current(self) -> tuple[RegistryEntry, ...]:
        """The highest version of each name, by name."""
        folders = sorted(p for p in self.root.iterdir() if is_name(p.name)) if self.root.is_dir() else []
        numbered = [(folder.name, max(found.items())) for folder in folders if (found := versions(folder))]
        return tuple(self.entry(path, version, name) for name, (version, path) in numbered)

    def history(self, name: str) -> tuple[RegistryEntry, ...]:
        """All versions of one name, the lowest first."""
        found = versions(self.root / name) if is_name(name) else {}
        return tuple(self.entry(path, version, name) for version, path in found.items())

    def is_current(self, entry: RegistryEntry) -> bool:
        """Whether this is the highest version of its name here."""
        found = versions(self.root / entry.name)
        return entry.path in found.values() and max(found) == entry.version

    def entry(self, folder: Path, version: int, name: str) -> RegistryEntry:
        """Read a folder, or remember it from the last time if its files are the same."""
        try:
            state = state_of(folder)
            known = self._read.get(folder)
            if known is not None and known.state == state:
                return known
            entry = read_entry(self._inside(folder), name, version)
        except OSError as error:
            return RegistryEntry(name, folder, None, error.strerror, version)
        except PrefixInvalid as error:
            entry = RegistryEntry(name, folder, None, str(error), version, state=state)
        self._read[folder] = entry
        return entry

    def read(self, name: str, location: str) -> RegistryEntry:
        """Read the highest version of a name from disk, whatever was read before.

        Args:
            name: The name.
            location: What the user calls the registry.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
        """
        known = versions(self.root / name) if is_name(name) else {}
        if not known:
            raise PrefixInvalid(
                f"no prefix of this name in {printable(location, 400)}; `apl-guard prefix list` shows the names",
                where=printable(name),
            )
        version, path = max(known.items())
        return read_entry(self._inside(path), name, version)

    def add(self, name: str, version: int, files: Mapping[str, bytes]) -> RegistryEntry:
        """Write a new version.

        Raises:
            InvalidInput: It is there already.
            StorageFailed: It could not be written.
        """
        target = self.root / name / str(version)
        if target.exists():
            raise InvalidInput(f"somebody else registered version {version} meanwhile; try again", where=name)
        write_folder(target, files)
        return read_entry(target, name, version)

    def _inside(self, path: Path) -> Path:
        """Links must not lead out of the registry."""
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise PrefixInvalid("a link that leads out of the registry", where=path)
        return path
