"""A version of one registry, copied to another: into a folder, a bucket, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from apl_guard.errors import InvalidInput
from apl_guard.prefix.layout import ENTRY_NAME
from apl_guard.registry.adding import adopt
from apl_guard.registry.entry import RegistryEntry
from apl_guard.registry.pushing import push_files, push_revoked
from apl_guard.registry.revoked import RevokedFile, revoke
from apl_guard.registry.shelf import Shelf
from apl_guard.registry.source import as_url

__all__ = ["publish", "publish_revoked"]


def publish(entry: RegistryEntry, revoked: RevokedFile, target: str | Path) -> None:
    """Copy a version, and a list of revocations, to a registry; see `PrefixRegistry.publish`."""
    if ENTRY_NAME not in entry.files:
        raise InvalidInput("has no version; register it first", where=entry.name)
    publish_revoked(revoked, target)  # first, so that they are there whatever becomes of the version
    url = as_url(target)
    if url is None:
        adopt(Shelf(Path(target)), entry)
    else:
        push_files(url, entry.name, entry.version, entry.all_files)


def publish_revoked(revoked: RevokedFile, target: str | Path) -> None:
    """Add a list of revocations to that of a registry; see `PrefixRegistry.publish_revoked`."""
    url = as_url(target)
    if url is not None:
        push_revoked(url, revoked)
        return
    for revocation in revoked.revoked:
        revoke(Path(target), revocation.digest, revocation.reason)
