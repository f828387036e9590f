"""Looks whether files of a policy have changed, and has it read again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from apl_guard.errors import AuditUnavailable

__all__ = ["PolicyWatch"]

_log = logging.getLogger("apl_guard")

_State: TypeAlias = "dict[Path, tuple[int, int, int] | None]"


class PolicyWatch:
    """A thread that reloads a policy whenever one of its files changes. End it with `close`, or use it in `with`.

    Args:
        files: The files to look at; asked anew each time.
        reload: Reads the policy again. What it raises is logged; where the change could not be recorded, it is tried
            again.
        seconds: How often to look.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], reload: Callable[[], object], seconds: float) -> None:
        self._files = files
        self._reload = reload
        self._seconds = seconds
        self._ended = threading.Event()
        self._seen = self._state()
        self._thread = threading.Thread(target=self._run, name="apl-guard policy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> PolicyWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._look_and_reload()
            except Exception as error:
                _log.error("the changed policy is not put in force, the one before stays: %s", error)
                if isinstance(error, AuditUnavailable):
                    self._seen = {}  # the file is not to blame: tried again, until the change can be recorded

    def _look_and_reload(self) -> None:
        # Taken before reading: what is written while we read shows as a change the next time.
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        changed = self._reload()
        _log.warning("the changed policy is in force" if changed else "the policy file says the same as before")
        self._seen |= {path: _look(path) for path in self._files() if path not in self._seen}

    def _state(self) -> _State:
        return {path: _look(path) for path in self._files()}


def _look(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or exchanged; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
