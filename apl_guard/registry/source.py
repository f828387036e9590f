"""A registry that lies behind a URL: what it holds, and its files.

Only names that prefixes may have are asked for, and only files that a registry has, up to their limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any

from apl_guard.errors import InvalidInput, PrefixInvalid, RegistryUnavailable
from apl_guard.prefix.layout import FILE_NAME, REVOKED_FOLDER, REVOKED_NAME, is_name
from apl_guard.prefix.tensorfile import MAX_FILE_BYTES
from apl_guard.printable import printable
from apl_guard.registry.entry import LIMITS_BESIDE
from apl_guard.registry.revoked import (
    MAX_REVOKED_BYTES,
    RevokedFile,
    digest_of,
    joined,
    parse_one,
    parse_revoked,
)

__all__ = ["LIMITS", "Source", "as_url", "cause", "check_protocol", "opened", "without_user"]

LIMITS = {**LIMITS_BESIDE, FILE_NAME: MAX_FILE_BYTES}  # last: a version counts as soon as the prefix is there
_MAX_VERSIONS = 2000
_SILENCE_SECONDS = 10.0
"""How long a server may say nothing, where aiohttp itself would wait for five minutes, and SFTP for ever."""
_ANSWER_SECONDS = 120.0
"""How long an answer of a server of HTTP may take that goes on saying a little."""
_MAX_ANSWER_BYTES = 16 << 20
"""Of a server of HTTP, such as the list of what is in a folder."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_USER = re.compile(r"(?<=:/)(/?)[^/\s]*@")


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


def without_user(text: str) -> str:
    """A text without the users and passwords of the URLs in it: as it may stand in an error, a log or a file.

    Example:
        >>> without_user("sftp://reader:secret@host/prefixes cannot be opened"), without_user("hf://acme/prefixes@main")
        ('sftp://host/prefixes cannot be opened', 'hf://acme/prefixes@main')
    """
    return _USER.sub(r"\1", text)


def cause(error: Exception, url: str) -> Exception | None:
    """What an error about a registry may name as its cause: nothing where that may quote a password of the URL."""
    return error if without_user(url) == url else None


class Source:
    """A registry behind a URL, for one look at it.

    Args:
        url: The registry, as it may stand in an error.
        system: The file system that it is in.
        root: Its path there.
        seconds: How long the look may take.

    Raises:
        RegistryUnavailable: The look takes too long.
    """

    def __init__(self, url: str, system: Any, root: str, seconds: float) -> None:
        self._url = url
        self._system = system
        self._root = root
        self._seconds = seconds
        self._until = monotonic() + seconds
        system.invalidate_cache()
        self._listed = self._list()

    def offered(self) -> dict[tuple[str, str], dict[str, int]]:
        """(name, version) → file → size, of all that looks like a registry.

        Raises:
            RegistryUnavailable: It holds nothing, or more than a registry may.
        """
        found: dict[tuple[str, str], dict[str, int]] = {}
        for path, info in self._listed.items():
            parts = PurePosixPath(str(path)).parts[-3:]
            if len(parts) == 3 and is_name(parts[0]) and re.fullmatch("[1-9][0-9]{0,8}", parts[1]):
                name, version, file = parts
                if file in LIMITS and info.get("type", "file") == "file":  # no pipe, which would not end
                    found.setdefault((name, version), {})[file] = int(info.get("size") or 0)
        found = {key: {f: sizes[f] for f in LIMITS if f in sizes} for key, sizes in found.items() if FILE_NAME in sizes}
        if not found:  # many file systems answer so about a place that is not there
            raise RegistryUnavailable(f"{self._url} holds no prefix; check the address and the rights")
        if len(found) > _MAX_VERSIONS:
            raise RegistryUnavailable(f"{self._url} holds {len(found)} versions, expected at most {_MAX_VERSIONS}")
        return found

    def revoked(self, known: RevokedFile) -> RevokedFile:
        """All that is revoked there: its list, and what lies beside the list in files of their own.

        Args:
            known: What is known of it from before; not asked for again.

        Raises:
            PrefixInvalid: The list is damaged.
        """
        path = f"{self._root}/{REVOKED_NAME}"
        if self._listed.get(path, {}).get("type", "file") != "file":  # reading a pipe would not end
            raise PrefixInvalid("not a regular file; expected the list of revoked prefixes", where=path)
        found = RevokedFile()
        # Asked whether it exists, a server that is only busy says no.
        if path in self._listed or self._system.exists(path):
            found = parse_revoked(self.fetch(path, MAX_REVOKED_BYTES), Path(path))
        folder, one_by_one = f"{self._root}/{REVOKED_FOLDER}/", []
        before = {entry.digest: entry for entry in known.revoked}
        for path, info in self._listed.items():
            digest = digest_of(path.removeprefix(folder)) if path.startswith(folder) else None
            if digest is None or digest in found.reasons:
                continue
            if digest in before:
                one_by_one.append(before[digest])
            else:
                is_file = info.get("type", "file") == "file"
                one_by_one.append(parse_one(self.fetch(path, MAX_REVOKED_BYTES) if is_file else b"", digest))
        return joined(found, one_by_one)

    def files(self, name: str, version: str, sizes: Mapping[str, int]) -> dict[str, bytes]:
        """Name → content of the files of a version.

        Raises:
            PrefixInvalid: One of them came in part, or is too large.
        """
        found = {file: self.fetch(f"{self._root}/{name}/{version}/{file}", LIMITS[file]) for file in sizes}
        for file, size in sizes.items():
            if size and len(found[file]) != size:  # some file systems know no sizes
                came = f"{len(found[file])} bytes came, expected {size}"
                raise PrefixInvalid(came, where=f"{name}/{version}/{file}")
        return found

    def fetch(self, path: str, limit: int) -> bytes:
        """The content of a file.

        Raises:
            PrefixInvalid: It is too large.
            RegistryUnavailable: The look takes too long.
        """
        self._check_time()
        with self._system.open(path, "rb") as stream:
            content: bytes = stream.read(limit + 1)
        if len(content) > limit:
            raise PrefixInvalid(f"larger than {limit} bytes; not a file of a registry", where=path)
        return content

    def _list(self) -> dict[str, Any]:
        """Path → what is known of the file, of everything where a registry has its files.

        The paths are made here, of the names alone: servers of HTTP list `./NAME`, or addresses of another scheme.
        """
        found: dict[str, Any] = {}
        folders = {self._root: self._root}
        for _ in range(3):
            deeper: dict[str, str] = {}
            for folder, asked in folders.items():
                self._check_time()
                # By hand, for `find` and `walk` take a folder that cannot be listed now for one without content.
                try:
                    listing = self._system.ls(asked, detail=True)
                except FileNotFoundError:
                    continue
                for info in listing:
                    listed = str(info["name"]).rstrip("/")
                    path = f"{folder}/{listed.rpartition('/')[2]}"
                    if info["type"] != "directory":
                        found[path] = info
                    elif listed != asked and is_name(path.rpartition("/")[2]):
                        deeper[path] = path if self._root else listed  # at the root, paths begin as each system likes
            folders = deeper
        return found

    def _check_time(self) -> None:
        if monotonic() > self._until:
            raise RegistryUnavailable(
                f"looking at {self._url} takes longer than {self._seconds:g} s; check the network"
            )


@contextmanager
def opened(url: str) -> Iterator[tuple[Any, str]]:
    """The file system behind a URL, and the path in it.

    It is opened anew, not shared by fsspec: many do not work in a process that was forked, and those of FTP and SFTP
    never connect again once they have lost their connection.

    Raises:
        InvalidInput: The URL is of a kind that is not supported here.
        RegistryUnavailable: It cannot be reached, or makes no sense to its file system.
    """
    import fsspec.core

    check_protocol(url)
    options: dict[str, Any] = {"skip_instance_cache": True}
    if url.startswith(("http://", "https://")):
        import aiohttp  # fsspec has said that it is there

        silence = {"sock_connect": _SILENCE_SECONDS, "sock_read": _SILENCE_SECONDS}
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=_ANSWER_SECONDS, **silence),
            "response_class": _bounded(aiohttp.ClientResponse),
            "trace_configs": [_watching_redirects(aiohttp.TraceConfig())],
            # A compressed answer could be of any size when it is unpacked.
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
        }
    try:
        system, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:  # some connect at once, and every file system has exceptions of its own
        raise RegistryUnavailable(
            f"{printable(without_user(url), 400)} cannot be opened ({type(error).__name__}); check the address, the "
            "rights and the network"
        ) from cause(error, url)
    client: Any = getattr(system, "ftp", None)
    channel = client.get_channel() if hasattr(client, "get_channel") else None  # of SFTP
    if channel is not None:
        channel.settimeout(_SILENCE_SECONDS)
    try:
        yield system, str(root).rstrip("/")
    finally:
        if channel is not None:  # it has a thread, which would keep it open
            channel.get_transport().close()


def _bounded(response: type[Any]) -> type[Any]:
    """Answers of aiohttp that are never held in memory beyond a limit, as fsspec does with whatever a server lists."""

    class Bounded(response):  # type: ignore[misc]
        _body: bytes | None

        async def read(self) -> bytes:
            if self._body is None:
                content = bytearray()
                async for part in self.content.iter_any():
                    content += part
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise PrefixInvalid(f"an answer is larger than {_MAX_ANSWER_BYTES} bytes; not a registry")
                self._body = bytes(content)
            return self._body

    return Bounded


def _watching_redirects(trace: Any) -> Any:
    """What makes aiohttp follow no redirect out of https, as one that a proxy writes that does not know of it."""

    async def refuse(_session: object, _context: object, redirect: Any) -> None:
        to = redirect.url.join(type(redirect.url)(redirect.response.headers.get("Location", "")))
        if redirect.url.scheme == "https" and to.scheme != "https":
            raise RegistryUnavailable(
                f"{redirect.url.host} redirects from https to {to.scheme}, where nobody knows who answers; mend its "
                "redirects"
            )

    trace.on_request_redirect.append(refuse)
    return trace


def check_protocol(url: str) -> None:
    """Make sure that there is a file system for a URL.

    Raises:
        InvalidInput: There is none here.
    """
    import fsspec

    try:
        fsspec.get_filesystem_class(url.partition("://")[0].partition("::")[0])
    except (ImportError, ValueError) as error:
        raise InvalidInput(f"cannot be opened ({printable(str(error))})", where=printable(without_user(url))) from error
