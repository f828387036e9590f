"""A copy of a registry that lies behind a URL.

What is copied is read by the same code as a registry of this machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from apl_guard.errors import AplGuardError, RegistryUnavailable, StorageFailed
from apl_guard.prefix.layout import REVOKED_NAME, SIGNATURE_NAME
from apl_guard.printable import printable
from apl_guard.registry.looks import Looks
from apl_guard.registry.revoked import RevokedFile, as_file, joined, read_revoked
from apl_guard.registry.source import Source, cause, check_protocol, opened, without_user
from apl_guard.storage import alone, check_place, write_file, write_folder

__all__ = ["Mirror"]

_PATIENCE_SECONDS = 600.0
"""How long a look may take, and how long to wait for one where there is no copy that may serve."""
_SILENCE_SECONDS = 10.0
"""How long to wait for a look that is late, where there is one."""
_log = logging.getLogger("apl_guard")


class Mirror:
    """A copy of a registry that lies behind a URL.

    A thread looks at the registry in good time, so that no call waits for a server. Only a call that finds the last
    look longer ago than it may be, as the first one of a process does, waits for the next.

    Args:
        url: The registry.
        folder: Where the copy is kept.
        refresh_after: Seconds after which it has been looked at again.
        valid_for: Seconds for which the copy serves while the registry cannot be reached.

    Raises:
        InvalidInput: The URL is of a kind that is not supported here.
    """

    def __init__(self, url: str, folder: Path, refresh_after: float, valid_for: float) -> None:
        self.url = url
        self._shown = without_user(url)
        self.folder = folder
        self._refresh_after = refresh_after
        self._valid_for = valid_for
        check_protocol(url)  # the place itself may be out of reach now
        self._looked = -float("inf")
        """When this process last began to look, successful or not, on the monotonic clock."""
        # Due after half of the time, asked at each quarter: at most three quarters pass, which leaves one for a look.
        # Who wants it fresher than a second has it looked at by the calls.
        self._looks = Looks(self._look, self._is_due, refresh_after / 4 if refresh_after >= 1 else None)

    def keep_fresh(self) -> None:
        """Go on with the copy as long as it was looked at in time, or else wait for a look.

        Raises:
            RegistryUnavailable: It cannot be reached, and the copy is too old, or there is none.
        """
        now = time.monotonic()
        may_serve = self._may_serve()
        if may_serve and self._age(now) < self._refresh_after:
            self._looks.go_on()
            return
        patience = _SILENCE_SECONDS if may_serve else _PATIENCE_SECONDS
        reason: Exception = RegistryUnavailable(f"{self._shown} has not answered for {patience:g} s; check the network")
        try:
            self._looks.wait(now - self._refresh_after, patience, is_needed=not may_serve)
        except TimeoutError:
            pass
        except Exception as error:
            reason = error
        if not self._may_serve():
            raise RegistryUnavailable(str(reason)) from reason

    def refresh(self) -> None:
        """Look at the registry now.

        Raises:
            RegistryUnavailable: It cannot be reached, or holds more than a registry may.
        """
        began = time.monotonic()
        self._refresh(_PATIENCE_SECONDS)
        self._looked = began

    @property
    def _marker(self) -> Path:
        """A file whose time is that of the last look that made the copy whole, in this process or another."""
        return self.folder.parent / "copied"

    def _copy_age(self) -> float | None:
        """Seconds since the copy was last made whole; None where there is none, or clocks say nonsense."""
        try:
            age = time.time() - self._marker.stat().st_mtime
        except OSError:
            return None
        return age if age >= 0 else None

    def _age(self, now: float) -> float:
        """Seconds since the last look. The first one is for each process itself to have."""
        own = now - self._looked
        copied = self._copy_age()
        return own if copied is None or own == float("inf") else min(own, copied)

    def _is_due(self) -> bool:
        return self._age(time.monotonic()) >= self._refresh_after / 2

    def _may_serve(self) -> bool:
        """Whether there is a copy that is not too old, or not yet due for a look."""
        age = self._copy_age()
        return age is not None and age <= max(self._valid_for, self._refresh_after)

    def _look(self) -> None:
        """Look, and say so where that failed and calls go on nevertheless."""
        began = time.monotonic()
        try:
            self._refresh(0 if self._may_serve() else _PATIENCE_SECONDS)
        except RegistryUnavailable as error:
            if self._may_serve():
                _log.warning("the copy serves on, and what was revoked since is not known: %s", error)
            raise
        finally:
            self._looked = began

    def _refresh(self, patience: float) -> None:
        """Look at the registry. Another process that does so has the same copy: without patience, that is enough."""
        try:
            check_place(self._marker)
        except StorageFailed as error:
            raise RegistryUnavailable(
                f"{self._shown} cannot be copied to this machine: {error}; "
                "let APL_GUARD_CACHE name a folder that can be written"
            ) from error
        try:
            with alone(self.folder.parent / "lock", patience) as is_alone:
                if is_alone:
                    began = time.time()
                    with opened(self.url) as there:
                        self._copy(Source(self._shown, *there, _PATIENCE_SECONDS))
                    write_file(self._marker, self._shown.encode())
                    os.utime(self._marker, (began, began))
                elif patience or (self._copy_age() or 0) > _PATIENCE_SECONDS + self._refresh_after:
                    raise RegistryUnavailable(
                        f"another process has been copying {self._shown} for {_PATIENCE_SECONDS:g} s; check the network"
                    )
        except RegistryUnavailable:
            raise
        except Exception as error:  # every file system has exceptions of its own
            reason = without_user(str(error)) if isinstance(error, AplGuardError) else type(error).__name__
            raise RegistryUnavailable(
                f"{self._shown} cannot be copied ({printable(reason, 400)}); check the address, the rights and the "
                "network. For a folder of this machine write ./NAME"
            ) from cause(error, self.url)

    def _copy(self, there: Source) -> None:
        offered = there.offered()
        self.folder.mkdir(parents=True, exist_ok=True)
        before: RevokedFile | None = None
        with contextlib.suppress(RegistryUnavailable):  # a damaged copy is written anew
            before = read_revoked(self.folder)
        # What was taken from the list there stays on it here.
        revoked = joined(before or RevokedFile(), there.revoked(before or RevokedFile()).revoked)
        if revoked != before:
            path = self.folder / REVOKED_NAME
            write_file(path, as_file(revoked, path))
        for (name, version), sizes in offered.items():
            target = self.folder / name / version
            # A version never changes, but it may be signed, or signed anew: mostly in as many bytes.
            if {file: _size(target / file) for file in sizes} == sizes:
                signature = {file: size for file, size in sizes.items() if file == SIGNATURE_NAME}
                new = there.files(name, version, signature)
                if all(_content(target / file) == content for file, content in new.items()):
                    continue
            files = there.files(name, version, sizes)
            if any(_content(target / file) != content for file, content in files.items()):  # no sizes, no difference
                write_folder(target, files)
        self._forget_others(offered)

    def _forget_others(self, offered: Mapping[tuple[str, str], object]) -> None:
        for name in [p for p in self.folder.iterdir() if p.is_dir()]:
            for version in [p for p in name.iterdir() if p.is_dir()]:
                if (name.name, version.name) not in offered:
                    shutil.rmtree(version)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
