"""Looks whether files of a policy have changed, and has it read again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

__all__ = ["PolicyWatch"]

_log = logging.getLogger("apl_guard")

_State: TypeAlias = "dict[Path, tuple[int, int, int] | None]"


class PolicyWatch:
    """A thread that reloads a policy whenever one of its files changes. End it with `close`, or use it in `with`.

    Args:
        files: The files to look at; asked anew each time.
        reload: Reads the policy again. What it raises is logged.
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
            # Taken before reading: what is written while we read shows as a change the next time.
            state = self._state()
            if state == self._seen:
                continue
            self._seen = state
            try:
                changed = self._reload()
            except Exception as error:
                _log.error("the changed policy is not put in force, the one before stays: %s", error)
            else:
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
