"""Where records go: a file of the guard's own, or the platform's logging."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import Processor

from apl_guard.audit.records import Outcome, decision_record, outcome_record
from apl_guard.decision import Decision
from apl_guard.errors import AuditUnavailable
from apl_guard.request import GenerationRequest
from apl_guard.storage import sync_folder

__all__ = ["AuditLog"]

FILE_NAME = "audit.jsonl"
KEY_NAME = "hmac.key"
_KEY_BYTES = 32
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT


class AuditLog:
    """Writes decision and outcome records through structlog.

    Args:
        folder: Records are appended to `audit.jsonl` in this folder, one JSON object a line, each on disk
            before the call goes on. The key of the digests is made there too, readable by the owner only.
            None sends records to the platform: to its structlog configuration, or where structlog is not
            configured, to the standard logger `apl_guard.audit`.

    Raises:
        AuditUnavailable: The folder or the key cannot be used.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._file: _DurableFile | None = None
        if folder is None:
            self._key = secrets.token_bytes(_KEY_BYTES)
            return
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._key = _read_or_make_key(folder / KEY_NAME)
            self._file = _DurableFile(folder / FILE_NAME)
        except OSError as error:
            raise _unavailable(error, folder) from error

    def decision(self, decision: Decision, request: GenerationRequest) -> None:
        """Write what was decided.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        self._write("guard.decision", decision_record(decision, request, self._key))

    def outcome(self, outcome: Outcome) -> None:
        """Write what was done.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        self._write("guard.outcome", outcome_record(outcome))

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        try:
            self._logger().info(event, **fields)
        except AuditUnavailable:
            raise
        except Exception as error:
            raise _unavailable(error, "audit") from error

    def _logger(self) -> Any:
        if self._file is not None:
            return structlog.wrap_logger(self._file, processors=_JSON_LINES, wrapper_class=structlog.BoundLogger)
        if structlog.is_configured():
            return structlog.get_logger("apl_guard.audit")
        standard = logging.getLogger("apl_guard.audit")
        return structlog.wrap_logger(standard, processors=_JSON_LINES, wrapper_class=structlog.BoundLogger)


_JSON_LINES: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.JSONRenderer(sort_keys=True),
]


class _DurableFile:
    """The end of structlog's chain: appends a line to a file and returns when it is on disk.

    A line goes out in one write to a file opened for appending, so several processes can share the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._open()

    def info(self, line: str) -> None:
        """Append a line.

        Raises:
            AuditUnavailable: It is not on disk.
        """
        with self._lock:
            try:
                handle = self._open()
                # A torn line of a writer that died stays as it is; ours starts on a line of its own.
                content = (b"\n" if _ends_torn(handle) else b"") + line.encode() + b"\n"
                if os.write(handle, content) != len(content):
                    raise OSError("only a part of the record was written")
                os.fsync(handle)
            except OSError as error:
                # After a failed sync nothing is known about this handle, so it is not used again.
                self._close()
                raise _unavailable(error, self._path) from error

    def _open(self) -> int:
        if self._handle is None:
            is_new = not self._path.exists()
            self._handle = os.open(self._path, _FLAGS, 0o600)
            if is_new:
                sync_folder(self._path.parent)
        return self._handle

    def _close(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None


def _ends_torn(handle: int) -> bool:
    if os.lseek(handle, 0, os.SEEK_END) == 0:
        return False
    os.lseek(handle, -1, os.SEEK_END)
    return os.read(handle, 1) != b"\n"


def _read_or_make_key(path: Path) -> bytes:
    if not path.exists():
        # Linked into place when it is whole: another process may be starting at the same moment.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)
        sync_folder(path.parent)
    if os.name != "nt" and path.stat().st_mode & 0o077:
        raise AuditUnavailable(f"{path}: others can read the key; make it private with: chmod 600 {path}")
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise AuditUnavailable(f"{path}: {len(key)} bytes, expected {_KEY_BYTES}; restore the key or move it away")
    return key


def _unavailable(error: Exception, where: str | Path) -> AuditUnavailable:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return AuditUnavailable(f"{where}: the record could not be written ({reason}), so there is no image")
