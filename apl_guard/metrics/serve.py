"""Handing the metrics to Prometheus, of this process or of several that count together."""

from __future__ import annotations

import os
import threading
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server, values
from prometheus_client.multiprocess import MultiProcessCollector

from apl_guard.errors import MetricsUnavailable

__all__ = ["FOLDER_VARIABLE", "MetricsServer", "is_multiprocess", "of_all_processes", "serve"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which several processes count together."""


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

    Raises:
        MetricsUnavailable: There is no such folder.
    """
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise MetricsUnavailable(
            f"{FOLDER_VARIABLE} is {os.environ.get(FOLDER_VARIABLE, 'not set')!r}; expected a folder that is there"
        ) from error
    return registry


class MetricsServer:
    """A running HTTP server for metrics."""

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.server_address[1]
        return port

    def wait(self) -> None:
        """Until the server is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving."""
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
    except (OSError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or error
        raise MetricsUnavailable(
            f"metrics cannot be served on {address} port {port}: {problem}; choose another port, or 0 for a free one"
        ) from error
    return MetricsServer(server, thread)
