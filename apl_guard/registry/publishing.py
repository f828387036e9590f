"""A version of one registry, copied to another: into a folder, a bucket, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from apl_guard.errors import InvalidInput
from apl_guard.prefix.layout import ENTRY_NAME
from apl_guard.registry.adding import adopt
from apl_guard.registry.entry import RegistryEntry
from apl_guard.registry.mirror import as_url, push_files
from apl_guard.registry.revoked import RevokedFile, revoke
from apl_guard.registry.shelf import Shelf

__all__ = ["publish"]


def publish(entry: RegistryEntry, revoked: RevokedFile, target: str | Path) -> None:
    """Copy a version, and a list of revocations, to a registry.

    Args:
        entry: The version.
        revoked: What must not be used any more. It is added to what the other registry has on its list.
        target: A folder, a URL, or `owner/name` on the hub.

    Raises:
        InvalidInput: It has no number, or the other registry has that version or a later one.
        RegistryUnavailable: The other registry cannot be reached or written.
        StorageFailed: The other registry could not be written.
    """
    url = as_url(target)
    if url is None:
        adopt(Shelf(Path(target)), entry)
        for revocation in revoked.revoked:
            revoke(Path(target), revocation.digest, revocation.reason)
        return
    if ENTRY_NAME not in entry.files:
        raise InvalidInput("has no version; register it first", where=entry.name)
    push_files(url, entry.name, entry.version, entry.all_files, revoked)
