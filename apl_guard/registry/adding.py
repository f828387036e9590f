"""Adding versions to the folder of a registry: numbers only grow, and a name stays with its prefix."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from apl_guard.errors import InvalidInput
from apl_guard.prefix import Prefix
from apl_guard.prefix.layout import CARD_NAME, ENTRY_NAME, FILE_NAME, SIGNATURE_NAME, is_name
from apl_guard.prefix.places import SHIPPED_NAME, find_path
from apl_guard.prefix.tensorfile import read_file
from apl_guard.printable import printable
from apl_guard.registry.entry import MAX_CARD_BYTES, EntryFile, RegistryEntry
from apl_guard.registry.shelf import Shelf
from apl_guard.registry.writing import only_writer
from apl_guard.storage import write_file

__all__ = ["adopt", "register"]


def register(shelf: Shelf, folder: str | Path, name: str | None, *, replace: bool) -> RegistryEntry:
    """Check a prefix and add it to a folder as the next version of its name; see `PrefixRegistry.register`."""
    path = find_path(folder)
    source = path if path.is_dir() else path.parent
    content = read_file(path / FILE_NAME if path.is_dir() else path)
    prefix = Prefix.parse(content, where=path)
    name = prefix.metadata.name if name is None else name
    if name == SHIPPED_NAME:
        raise InvalidInput(f"'{name}' is the prefix that is shipped; give another name (--name)", where="name")
    if not is_name(name):
        raise InvalidInput(
            f"'{printable(name)}' is malformed; use letters, digits, '.', '_' and '-', 64 at most", where="name"
        )
    files = {FILE_NAME: content}
    if (source / CARD_NAME).is_file():
        files = {CARD_NAME: read_file(source / CARD_NAME, limit=MAX_CARD_BYTES), **files}
    with only_writer(shelf.root):
        known = shelf.history(name)
        if known:
            taken = known[-1]
            if taken.prefix is not None and taken.prefix.digest == prefix.digest:
                return taken
            if not replace:
                raise InvalidInput(
                    f"'{name}' is another prefix already; choose another name, or replace it", where="name"
                )
        version = known[-1].version + 1 if known else 1
        said = EntryFile(name=name, version=version, digest=prefix.digest, registered=datetime.now(UTC))
        return shelf.add(name, version, {ENTRY_NAME: said.model_dump_json().encode(), **files})


def adopt(shelf: Shelf, entry: RegistryEntry) -> RegistryEntry:
    """Add a version of another registry to a folder; see `PrefixRegistry.adopt`."""
    digest = entry.whole.digest
    if ENTRY_NAME not in entry.files:
        raise InvalidInput("has no version; register it where it comes from", where=entry.name)
    with only_writer(shelf.root):
        known = shelf.history(entry.name)
        for mine in known:
            if mine.version == entry.version and mine.prefix and mine.prefix.digest == digest:
                signature = entry.signature
                if signature is not None and signature != mine.signature and mine.files == entry.files:
                    write_file(mine.path / SIGNATURE_NAME, signature)
                    return shelf.entry(mine.path, mine.version, mine.name)
                return mine
        if known and known[-1].version >= entry.version:
            raise InvalidInput(
                f"version {known[-1].version} of '{entry.name}' is here already, found version {entry.version} there; "
                "versions only grow",
                where="version",
            )
        return shelf.add(entry.name, entry.version, entry.all_files)
