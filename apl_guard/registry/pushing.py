"""Putting versions and revocations into a registry that lies behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from apl_guard.errors import AplGuardError, InvalidInput, RegistryUnavailable
from apl_guard.prefix.layout import FILE_NAME, REVOKED_FOLDER, REVOKED_NAME, SIGNATURE_NAME
from apl_guard.registry.revoked import MAX_REVOKED_BYTES, RevokedFile, as_file, file_of, joined, parse_revoked
from apl_guard.registry.source import LIMITS, cause, opened, without_user

__all__ = ["push_files", "push_revoked"]


def push_files(url: str, name: str, version: int, files: Mapping[str, bytes]) -> None:
    """Put a version into a registry behind a URL, or another signature of one that is there.

    Args:
        url: The registry.
        name: Name of the prefix.
        version: Its version.
        files: All of its files.

    Raises:
        InvalidInput: The registry has this version, or a later one, or the URL is not supported here.
        RegistryUnavailable: It cannot be reached or written.
    """
    with _written(url) as (system, root):
        there = system.find(root, maxdepth=3) if system.exists(root) else []
        parts = [PurePosixPath(str(path)).parts[-3:] for path in there]
        known = [int(p[1]) for p in parts if len(p) == 3 and p[0] == name and p[1].isdecimal() and p[2] == FILE_NAME]
        folder = f"{root}/{name}/{version}"
        if version in known and _differs_by_signature_alone(system, folder, files):
            system.pipe_file(f"{folder}/{SIGNATURE_NAME}", files[SIGNATURE_NAME])
            return
        if known and max(known) >= version:
            raise InvalidInput(
                f"{without_user(url)} has version {max(known)} of '{name}', found version {version} here; versions "
                "only grow, and stay as they are. What was revoked here is on its list now",
                where="version",
            )
        system.makedirs(folder, exist_ok=True)
        for file in sorted(files, key=lambda file: file == FILE_NAME):
            system.pipe_file(f"{folder}/{file}", files[file])


def push_revoked(url: str, revoked: RevokedFile) -> None:
    """Add revocations to the list of a registry behind a URL. What it lists stays on its list.

    Raises:
        InvalidInput: The URL is not supported here.
        RegistryUnavailable: It cannot be reached or written.
    """
    if not revoked.revoked:
        return
    with _written(url) as (system, root):
        path, folder = f"{root}/{REVOKED_NAME}", f"{root}/{REVOKED_FOLDER}"
        shown = Path(without_user(path))
        known = RevokedFile()
        if system.exists(path):
            known = parse_revoked(_read(system, path, MAX_REVOKED_BYTES), shown)
        both = joined(known, revoked.revoked)
        content = as_file(both, shown)
        system.makedirs(folder, exist_ok=True)
        there: set[str] = set()
        with suppress(FileNotFoundError):  # a bucket has no folders without files
            there = {str(place).rpartition("/")[2] for place in system.ls(folder, detail=False)}
        # Without locks, one of two who add to the list at once may be lost there, but not in files of their own.
        for entry in revoked.revoked:
            if file_of(entry.digest) not in there:
                own = as_file(RevokedFile(revoked=(entry,)), shown)
                system.pipe_file(f"{folder}/{file_of(entry.digest)}", own)
        if both != known:
            system.pipe_file(path, content)


@contextmanager
def _written(url: str) -> Iterator[tuple[Any, str]]:
    """The file system behind a URL, and the path in it, to be written."""
    with opened(url) as (system, root):
        try:
            system.invalidate_cache()
            yield system, root
        except AplGuardError:
            raise
        except Exception as error:  # every file system has exceptions of its own
            raise RegistryUnavailable(
                f"{without_user(url)} cannot be written ({type(error).__name__}); check the address, the rights and "
                "the network"
            ) from cause(error, url)


def _differs_by_signature_alone(system: Any, folder: str, files: Mapping[str, bytes]) -> bool:
    """Whether the same version is there, file for file, but without its signature or with another one."""
    there = {
        file: _read(system, f"{folder}/{file}", LIMITS[file]) for file in LIMITS if system.exists(f"{folder}/{file}")
    }
    return SIGNATURE_NAME in files and there != files and {**there, SIGNATURE_NAME: files[SIGNATURE_NAME]} == files


def _read(system: Any, path: str, limit: int) -> bytes:
    with system.open(path, "rb") as stream:
        content: bytes = stream.read(limit + 1)
    return content
