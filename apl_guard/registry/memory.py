"""What this machine has seen of a registry, so that whoever holds the registry cannot go back behind it.

A registry is asked to only grow. The highest version of each name and every revocation are remembered in a
file of the user's cache folder; what comes later must not contradict them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.errors import PrefixInvalid, PrefixRolledBack, RegistryUnavailable, StorageFailed
from apl_guard.forks import FreshLock
from apl_guard.prefix.layout import cache_root
from apl_guard.prefix.tensorfile import parse_model, read_file
from apl_guard.registry.source import without_user
from apl_guard.storage import write_file

__all__ = ["Memory"]

_MAX_BYTES = 4 << 20


class _Seen(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=0)]
    digest: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["apl-guard-seen/1"] = "apl-guard-seen/1"
    registry: str
    versions: dict[str, _Seen] = {}
    revoked: dict[str, str] = {}


class Memory:
    """What was seen of one registry.

    Args:
        location: The registry: its URL, or the path of its folder.
    """

    def __init__(self, location: str) -> None:
        self.location = without_user(location)
        """As it may be shown."""
        key = hashlib.sha256(location.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.folder = cache_root() / "registries" / key
        self._path = self.folder / "seen.json"
        self._alone = FreshLock()

    def check(self, name: str, version: int, digest: str) -> None:
        """Compare what a registry offers with what it offered before, and remember it.

        Raises:
            PrefixRolledBack: It offers an older version, or another prefix under the number of one seen before.
            RegistryUnavailable: What was seen cannot be read or written.
        """
        with self._alone.lock:
            file = self._read()
            seen = file.versions.get(name)
            if seen is not None and (version < seen.version or (version == seen.version and digest != seen.digest)):
                raise PrefixRolledBack(
                    f"{self.location} offers version {version} of '{name}' with digest {digest[:12]}, and offered "
                    f"version {seen.version} with digest {seen.digest[:12]} before; a registry only grows. Ask its "
                    f"owner; if the step back is meant, remove {self._path}"
                )
            if seen is None or seen.version != version:
                file.versions[name] = _Seen(version=version, digest=digest)
                self._write(file)

    def revoked(self, reasons: dict[str, str]) -> dict[str, str]:
        """Digest → reason of all that is revoked now or was at any time before. Remembers what is new.

        Raises:
            RegistryUnavailable: What was seen cannot be read or written.
        """
        with self._alone.lock:
            file = self._read()
            both = file.revoked | reasons
            if both != file.revoked:
                file.revoked = both
                self._write(file)
            return both

    def _read(self) -> _File:
        if not self._path.exists():
            return _File(registry=self.location)
        try:
            content = read_file(self._path, limit=_MAX_BYTES)
            return parse_model(_File, content, "memory of a registry", self._path)
        except PrefixInvalid as error:
            raise RegistryUnavailable(
                f"{self._path} is damaged, so it is unknown what was seen of {self.location}; remove it to begin anew"
            ) from error

    def _write(self, file: _File) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self._path, file.model_dump_json(indent=1).encode())
        except (OSError, StorageFailed) as error:
            raise RegistryUnavailable(
                f"what was seen of {self.location} cannot be remembered in {self._path}; "
                "let APL_GUARD_CACHE name a folder that can be written"
            ) from error
