"""A copy of a registry that lies behind a URL.

Only names that prefixes may have are asked for, and only files that a registry has, up to their limits. What
is copied is read by the same code as a registry of this machine.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from apl_guard.errors import AplGuardError, InvalidInput, PrefixInvalid, RegistryUnavailable, StorageFailed
from apl_guard.prefix.layout import CARD_NAME, ENTRY_NAME, FILE_NAME, REVOKED_NAME, SIGNATURE_NAME, is_name
from apl_guard.prefix.tensorfile import MAX_FILE_BYTES, printable
from apl_guard.registry.entry import MAX_CARD_BYTES, MAX_SIGNATURE_BYTES
from apl_guard.registry.revoked import MAX_REVOKED_BYTES, parse_revoked
from apl_guard.storage import alone, check_place, write_file, write_folder

__all__ = ["LIMITS", "Mirror", "as_url", "open_url"]

LIMITS = {
    ENTRY_NAME: 16 << 10,
    CARD_NAME: MAX_CARD_BYTES,
    SIGNATURE_NAME: MAX_SIGNATURE_BYTES,
    FILE_NAME: MAX_FILE_BYTES,  # last: a version counts as soon as this is there
}
_MAX_VERSIONS = 2000
_PATIENCE_SECONDS = 600.0
_SILENCE_SECONDS = 10.0
"""How long a server of HTTP may say nothing: a call waits for it, where aiohttp itself would wait for five minutes."""
_log = logging.getLogger("apl_guard")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def as_url(location: str | Path) -> str | None:
    """The URL that a location is, or None for a folder. `owner/name` is a repository on the hub.

    Example:
        >>> as_url("acme/prefixes"), as_url("s3://bucket/prefixes"), as_url("./prefixes"), as_url(Path("a/b"))
        ('hf://acme/prefixes', 's3://bucket/prefixes', None, None)
    """
    if isinstance(location, Path) or Path(location).is_dir():
        return None
    protocol, separator, place = location.partition("://")
    if separator:
        return f"{protocol}://{place.rstrip('/') or place}"
    return f"hf://{location}" if _HUB_ID.fullmatch(location) else None


class Mirror:
    """A copy of a registry that lies behind a URL.

    Args:
        url: The registry.
        folder: Where the copy is kept.
        refresh_after: Seconds after which it is looked at again.
        valid_for: Seconds for which the copy serves while the registry cannot be reached.

    Raises:
        InvalidInput: The URL is of a kind that is not supported here.
    """

    def __init__(self, url: str, folder: Path, refresh_after: float, valid_for: float) -> None:
        self.url = url
        self.folder = folder
        self._refresh_after = refresh_after
        self._valid_for = valid_for
        check_protocol(url)  # the place itself may be out of reach now
        self._lock = threading.Lock()
        self._tried = -float("inf")

    def keep_fresh(self) -> None:
        """Look at the registry if that is due. Others go on with the copy meanwhile, as long as it may serve.

        Raises:
            RegistryUnavailable: It cannot be reached, and the copy is too old, or there is none.
        """
        is_needed = not self._may_serve()
        if not is_needed and not self._is_due():
            return
        if not self._lock.acquire(blocking=is_needed):
            return
        try:
            if self._may_serve() and not self._is_due():
                return
            self._tried = time.monotonic()
            try:
                self._refresh(_PATIENCE_SECONDS if is_needed else 0)
            except RegistryUnavailable as error:
                if not self._may_serve():
                    self._tried = -float("inf")  # the next call tries again
                    raise
                _log.warning("the copy serves on, and what was revoked since is not known: %s", error)
        finally:
            self._lock.release()

    def refresh(self) -> None:
        """Look at the registry now.

        Raises:
            RegistryUnavailable: It cannot be reached, or holds more than a registry may.
        """
        with self._lock:
            self._refresh(_PATIENCE_SECONDS)
            self._tried = time.monotonic()

    @property
    def _marker(self) -> Path:
        """A file that was written when the copy was last whole."""
        return self.folder.parent / "copied"

    def _is_due(self) -> bool:
        return time.monotonic() - self._tried >= self._refresh_after

    def _may_serve(self) -> bool:
        """Whether there is a copy that is not too old, or not yet due for a look."""
        try:
            age = time.time() - self._marker.stat().st_mtime
        except OSError:
            return False
        return 0 <= age <= max(self._valid_for, self._refresh_after)

    def _refresh(self, patience: float) -> None:
        """Look at the registry. Another process that does so has the same copy: without patience, that is enough."""
        try:
            check_place(self._marker)
        except StorageFailed as error:
            raise RegistryUnavailable(
                f"{self.url} cannot be copied to this machine: {error}; "
                "let APL_GUARD_CACHE name a folder that can be written"
            ) from error
        try:
            with alone(self.folder.parent / "lock", patience) as is_alone:
                if is_alone:
                    self._copy()
                    write_file(self._marker, self.url.encode())
                elif patience:
                    raise RegistryUnavailable(
                        f"another process has been copying {self.url} for {patience:g} s; check the network"
                    )
        except RegistryUnavailable:
            raise
        except Exception as error:  # every file system has exceptions of its own
            reason = str(error) if isinstance(error, AplGuardError) else type(error).__name__
            raise RegistryUnavailable(
                f"{self.url} cannot be copied ({printable(reason, 400)}); check the address, the rights and the "
                "network. For a folder of this machine write ./NAME"
            ) from error

    def _copy(self) -> None:
        # Opened anew, for many file systems do not work in a process that was forked; kept ones are fsspec's business.
        self._system, self._root = open_url(self.url)
        self._system.invalidate_cache()
        listed = self._listed()
        offered = self._offered(listed)
        self.folder.mkdir(parents=True, exist_ok=True)
        revoked = f"{self._root}/{REVOKED_NAME}"
        if listed.get(revoked, {}).get("type", "file") != "file":  # reading a pipe would not end
            raise PrefixInvalid("not a regular file; expected the list of revoked prefixes", where=revoked)
        # Asked whether it exists, a server that is only busy says no.
        if revoked in listed or self._system.exists(revoked):
            content = self._fetch(revoked, MAX_REVOKED_BYTES)
            parse_revoked(content, Path(revoked))
            write_file(self.folder / REVOKED_NAME, content)
        for (name, version), sizes in offered.items():
            target = self.folder / name / version
            # A version never changes. What may come later is a signature.
            if {file: _size(target / file) for file in sizes} == sizes:
                continue
            files = {file: self._fetch(f"{self._root}/{name}/{version}/{file}", LIMITS[file]) for file in sizes}
            for file, size in sizes.items():
                if size and len(files[file]) != size:  # some file systems know no sizes
                    came = f"{len(files[file])} bytes came, expected {size}"
                    raise PrefixInvalid(came, where=f"{name}/{version}/{file}")
            write_folder(target, files)
        self._forget_others(offered)

    def _listed(self) -> dict[str, Any]:
        """Path → what is known of the file, of everything where a registry has its files."""
        found: dict[str, Any] = {}
        folders = [self._root]
        for _ in range(3):
            deeper: list[str] = []
            for folder in folders:
                # By hand, for `find` and `walk` take a folder that cannot be listed now for one without content.
                try:
                    listing = self._system.ls(folder, detail=True)
                except FileNotFoundError:
                    continue
                for info in listing:
                    path = str(info["name"]).rstrip("/")
                    if info["type"] != "directory":
                        found[path] = info
                    elif path != folder and is_name(path.rpartition("/")[2]):
                        deeper.append(path)
            folders = deeper
        return found

    def _offered(self, listed: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, int]]:
        """(name, version) → file → size, of all that looks like a registry."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for path, info in listed.items():
            parts = PurePosixPath(str(path)).parts[-3:]
            if len(parts) == 3 and is_name(parts[0]) and re.fullmatch("[1-9][0-9]{0,8}", parts[1]):
                name, version, file = parts
                if file in LIMITS and info.get("type", "file") == "file":  # no pipe, which would not end
                    found.setdefault((name, version), {})[file] = int(info.get("size") or 0)
        found = {key: {f: sizes[f] for f in LIMITS if f in sizes} for key, sizes in found.items() if FILE_NAME in sizes}
        if not found:  # many file systems answer so about a place that is not there
            raise RegistryUnavailable(f"{self.url} holds no prefix; check the address and the rights")
        if len(found) > _MAX_VERSIONS:
            raise RegistryUnavailable(f"{self.url} holds {len(found)} versions, expected at most {_MAX_VERSIONS}")
        return found

    def _fetch(self, path: str, limit: int) -> bytes:
        with self._system.open(path, "rb") as stream:
            content: bytes = stream.read(limit + 1)
        if len(content) > limit:
            raise PrefixInvalid(f"larger than {limit} bytes; not a file of a registry", where=path)
        return content

    def _forget_others(self, offered: Mapping[tuple[str, str], object]) -> None:
        for name in [p for p in self.folder.iterdir() if p.is_dir()]:
            for version in [p for p in name.iterdir() if p.is_dir()]:
                if (name.name, version.name) not in offered:
                    shutil.rmtree(version)


def open_url(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it.

    Raises:
        InvalidInput: The URL is of a kind that is not supported here.
        RegistryUnavailable: It cannot be reached, or makes no sense to its file system.
    """
    import fsspec.core

    check_protocol(url)
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp  # fsspec has said that it is there

        limit = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": limit}
    try:
        system, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:  # some connect at once, and every file system has exceptions of its own
        raise RegistryUnavailable(
            f"{printable(url, 400)} cannot be opened ({type(error).__name__}); check the address, the rights and the "
            "network"
        ) from error
    return system, str(root).rstrip("/")


def check_protocol(url: str) -> None:
    """Make sure that there is a file system for a URL.

    Raises:
        InvalidInput: There is none here.
    """
    import fsspec

    try:
        fsspec.get_filesystem_class(url.partition("://")[0].partition("::")[0])
    except (ImportError, ValueError) as error:
        raise InvalidInput(f"cannot be opened ({printable(str(error))})", where=printable(url)) from error


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
