"""Handing the metrics to Prometheus, of this process or of several that count together."""

from __future__ import annotations

import glob
import logging
import os
import threading
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Metric, start_http_server, values
from prometheus_client.multiprocess import MultiProcessCollector

from apl_guard.errors import MetricsUnavailable

__all__ = ["MetricsServer", "is_multiprocess", "of_all_processes", "serve"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which several processes count together."""

_IDLE_SECONDS = 30.0
"""A connection that sends nothing for so long is closed; each keeps a thread."""

_log = logging.getLogger("apl_guard")


def is_multiprocess() -> bool:
    """Whether this process counts together with others, in the folder of PROMETHEUS_MULTIPROC_DIR.

    Raises:
        MetricsUnavailable: The variable came too late.
    """
    # The client library looks once, when it is first imported.
    works: bool = values.ValueClass._multiprocess
    if FOLDER_VARIABLE in os.environ and not works:
        raise MetricsUnavailable(
            f"{FOLDER_VARIABLE} was set after prometheus_client was imported, so this process would count alone; "
            "set it where the service is started"
        )
    return works


def of_all_processes() -> CollectorRegistry:
    """A registry with what all processes counted in the folder of PROMETHEUS_MULTIPROC_DIR.

    A file that a process left damaged when it died is left out, and logged each time.

    Raises:
        MetricsUnavailable: There is no such folder.
    """
    registry = CollectorRegistry()
    try:
        _AllProcesses(registry)  # type: ignore[no-untyped-call]
    except ValueError as error:
        found = repr(os.environ[FOLDER_VARIABLE]) if FOLDER_VARIABLE in os.environ else "not set"
        raise MetricsUnavailable(f"{FOLDER_VARIABLE} is {found}; expected a folder that is there") from error
    return registry


class _AllProcesses(MultiProcessCollector):
    """What all processes counted, but for files that are damaged: one must not take the metrics of all away."""

    def collect(self) -> Iterable[Metric]:
        try:
            return self._merged(self._files())
        except Exception:
            return self._merged([file for file in self._files() if self._is_whole(file)])

    def _files(self) -> list[str]:
        return glob.glob(os.path.join(glob.escape(self._path), "*.db"))

    def _merged(self, files: list[str]) -> list[Metric]:
        return list(self.merge(files, accumulate=True))  # type: ignore[no-untyped-call]

    def _is_whole(self, file: str) -> bool:
        try:
            self._merged([file])
        except Exception as error:
            _log.error("metrics of one process are left out: %s is damaged (%s); remove it", file, type(error).__name__)
            return False
        return True


class MetricsServer:
    """A running HTTP server for metrics."""

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self._process = os.getpid()

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.server_address[1]
        return port

    def wait(self) -> None:
        """Until the server is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving. In a child of a fork, only the child's hold on the port is let go of: its parent serves on."""
        if os.getpid() == self._process:  # else nobody is there who could hear that it is to stop
            self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(registry: CollectorRegistry, port: int, address: str = "127.0.0.1") -> MetricsServer:
    """Serve a registry over HTTP, in a thread of this process.

    Args:
        registry: The registry.
        port: Where to listen; 0 takes a free port.
        address: On which address; "0.0.0.0" makes the metrics reachable from other machines.

    Raises:
        MetricsUnavailable: The port is taken or may not be used, or the address is not of this machine.
    """
    try:
        server, thread = start_http_server(port, address, registry=registry)
    except (OSError, OverflowError, UnicodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise MetricsUnavailable(
            f"metrics cannot be served on {address} port {port}: {problem}; choose another port, or 0 for a free one"
        ) from error
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("Handler", (handler,), {"timeout": _IDLE_SECONDS})
    return MetricsServer(server, thread)
