"""HTTP to an image service, with everything bounded: where it goes, how long it takes, how much comes back.

The base URL is fixed when the client is made, and nothing in an answer changes where a request goes: redirects
are refused, proxies and credentials of the environment are not used. TLS is required unless the service runs on
this machine. A request is sent once. Whether the service has drawn something when an answer is lost cannot be
known, so it is never asked again.

    RemoteError               the service or the way to it failed; an error of the backend, not of the guard
    ├── RemoteTimeout         it took longer than it may
    ├── RemoteRefused         it answered with an error; `status` and `detail` say which
    └── RemoteAnswerInvalid   what it answered is too large, cut off, redirected or not of the documented shape

Messages never hold text of an answer, which may hold the prompt. `detail` does, where the service gave one.
"""

# ruff: noqa: N818 - the names say what happened, as in `except RemoteTimeout`.

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from apl_guard.backend import BackendFailed
from apl_guard.errors import ExtraMissing, InvalidInput
from apl_guard.seconds import check_seconds

__all__ = ["HttpClient", "RemoteAnswerInvalid", "RemoteError", "RemoteRefused", "RemoteTimeout"]

_MAX_ERROR_BYTES = 64 << 10
_QUICK_SECONDS = 20.0


class RemoteError(BackendFailed):
    """The service or the way to it failed."""


class RemoteTimeout(RemoteError):
    """The service took longer than it may. It may still be drawing."""


class RemoteRefused(RemoteError):
    """The service answered with an error."""

    def __init__(self, message: str, *, status: int, detail: Any) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status."""
        self.detail = detail
        """What the service said, as parsed JSON or text; it may hold the prompt."""


class RemoteAnswerInvalid(RemoteError):
    """The answer is too large, cut off, redirected or not of the documented shape."""


class HttpClient:
    """Sends requests to one service.

    Args:
        base_url: Where the service is, such as `https://draw.example:7860`. Paths are added to it.
        headers: Sent with each request.
        auth: User and password for HTTP basic authentication.
        time_limit: Seconds that one request may take in total.
        connect_limit: Seconds until the connection must stand.
        max_answer_bytes: The largest answer that is read.
        insecure_http: Permit `http://` to another machine, where everybody on the way can read and change prompts
            and pictures.
        ca_file: Certificates, in PEM, that are trusted in place of the public ones, such as those of your own
            authority.

    Raises:
        InvalidInput: The URL has another form, or is not encrypted, the certificates cannot be read, or a limit is no
            number of seconds above 0.
        ExtraMissing: httpx is not installed.

    Example:
        >>> HttpClient("http://draw.example")
        Traceback (most recent call last):
        apl_guard.errors.InvalidInput: base_url: found http to another machine; expected https://, or insecure_http=True
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        time_limit: float = 600.0,
        connect_limit: float = 5.0,
        max_answer_bytes: int = 256 << 20,
        insecure_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ExtraMissing("remote", needs="httpx") from error
        self.base_url = _checked(base_url, insecure_http)
        self._time_limit = check_seconds(time_limit, where="time_limit")
        self._connect_limit = check_seconds(connect_limit, where="connect_limit")
        self._max_answer_bytes = max_answer_bytes
        self._client = httpx.Client(
            # A compressed answer could be of any size when it is unpacked.
            headers={**(headers or {}), "Accept-Encoding": "identity"},
            auth=auth,
            follow_redirects=False,
            trust_env=False,
            verify=_trusting_the_public() if ca_file is None else _trusting(ca_file),
            # A kept connection may have died unseen, so that nobody could say whether a request got through.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __repr__(self) -> str:
        return f"HttpClient({self.base_url!r})"

    def get(self, path: str, params: Mapping[str, str] | None = None, limit: float = _QUICK_SECONDS) -> Any:
        """Ask for JSON, such as what the service has. Such a question is answered within seconds.

        Args:
            path: Path behind the base URL.
            params: Query.
            limit: Seconds in total, never more than the client's limit.

        Raises:
            RemoteError: There is no usable answer.
        """
        return _parsed(self.get_bytes(path, params, min(limit, self._time_limit, _QUICK_SECONDS)))

    def get_bytes(self, path: str, params: Mapping[str, str] | None = None, limit: float | None = None) -> bytes:
        """Ask for a file.

        Args:
            path: Path behind the base URL.
            params: Query.
            limit: Seconds in total; None stands for the client's limit.

        Raises:
            RemoteError: There is no usable answer.
        """
        return self._send("GET", path, self._time_limit if limit is None else limit, params=dict(params or {}))

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """Send JSON and ask for JSON, once.

        Raises:
            InvalidInput: The content cannot be written as JSON.
            RemoteError: There is no usable answer. The service may have drawn something all the same.
        """
        try:
            body = json.dumps(dict(content), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"cannot be written as JSON ({type(error).__name__})", where="fields") from error
        headers = {"Content-Type": "application/json"}
        return _parsed(self._send("POST", path, self._time_limit, content=body, headers=headers))

    def _send(self, method: str, path: str, limit: float, **options: Any) -> bytes:
        import httpx

        where = f"{self.base_url}{path}"
        if limit <= 0:
            raise RemoteTimeout(f"{where}: not asked, because no time is left")
        deadline = monotonic() + limit
        options["timeout"] = httpx.Timeout(limit, connect=min(self._connect_limit, limit))
        try:
            with (
                _cut_off(limit) as trace,
                self._client.stream(method, where, extensions={"trace": trace}, **options) as response,
            ):
                content = self._read(response, where)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, RemoteError) as error:
            if monotonic() >= deadline or isinstance(error, httpx.TimeoutException):
                raise RemoteTimeout(f"{where}: no whole answer within {limit:g} s") from error
            if isinstance(error, RemoteError):
                raise
            # What breaks the protocol is quoted, and may be the prompt.
            cause = None if isinstance(error, httpx.ProtocolError) else error
            raise RemoteError(f"{where}: {type(error).__name__}, so there is no answer") from cause
        if monotonic() >= deadline:  # cut off, and the rest looked like an end
            raise RemoteTimeout(f"{where}: no whole answer within {limit:g} s")
        return content

    def _read(self, response: Any, where: str) -> bytes:
        if 300 <= response.status_code < 400:
            raise RemoteAnswerInvalid(f"{where}: answered with a redirect ({response.status_code}), which is refused")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise RemoteAnswerInvalid(f"{where}: answered compressed though asked not to, which is refused")
        is_error = response.status_code >= 400
        limit = _MAX_ERROR_BYTES if is_error else self._max_answer_bytes
        content = bytearray()
        for part in response.iter_raw():
            content += part
            if len(content) > limit:
                if is_error:
                    break
                raise RemoteAnswerInvalid(f"{where}: the answer is larger than {limit} bytes")
        if is_error:
            status = response.status_code
            raise RemoteRefused(f"{where}: status {status}", status=status, detail=_detail(bytes(content[:limit])))
        return bytes(content)


@contextlib.contextmanager
def _cut_off(limit: float) -> Iterator[Any]:
    """Close the connection after some seconds, whatever it is doing. httpx limits single reads only, and a
    service that sends one byte now and then would hold the caller for ever.

    Yields:
        What httpx is to call with its events.
    """
    opened: list[socket.socket] = []
    is_over = threading.Event()

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            # A second handle on the connection: TLS takes the first one away.
            opened.append(info["return_value"].get_extra_info("socket").dup())
            if is_over.is_set():  # looking the name up, which nothing can stop, took all the time there was
                close()

    def close() -> None:
        is_over.set()
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit, close)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
        for connection in opened:
            connection.close()


def _checked(base_url: str, insecure_http: bool) -> str:
    import httpx

    try:
        url = httpx.URL(base_url)
        host = url.host
    except (httpx.InvalidURL, UnicodeError, TypeError) as error:
        raise InvalidInput("found no URL; expected one such as https://draw.example:7860", where="base_url") from error
    if url.scheme not in ("http", "https") or not host:
        raise InvalidInput("expected a URL such as https://draw.example:7860", where="base_url")
    if url.userinfo or any(sign in str(url) for sign in "?#"):
        raise InvalidInput("found a user, a query or a fragment; expected scheme, host and path only", where="base_url")
    if url.scheme == "http" and not insecure_http and not _is_this_machine(host):
        raise InvalidInput("found http to another machine; expected https://, or insecure_http=True", where="base_url")
    return str(url).rstrip("/")


@functools.cache
def _trusting_the_public() -> ssl.SSLContext:
    """The certificates of httpx, read once: that takes longer than all else of a client."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _trusting(ca_file: str | os.PathLike[str]) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InvalidInput(
            f"cannot be read ({type(error).__name__}); expected certificates in PEM", where="ca_file"
        ) from error


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RemoteAnswerInvalid(
            f"the answer is no JSON ({len(content)} bytes); expected the documented one"
        ) from error


def _detail(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")
