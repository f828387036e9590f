"""Looks whether files of a policy have changed, and has it read again."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self, TypeAlias

from apl_guard.errors import AuditUnavailable, GuardUnavailable
from apl_guard.forks import mend_after_fork
from apl_guard.seconds import check_seconds

__all__ = ["PolicyWatch"]

_log = logging.getLogger("apl_guard")

_COARSE_SECONDS = 2.0
"""Some file systems tell times apart no better than this."""
_LONGEST_PAUSE_SECONDS = 60.0
_REST_SECONDS = 0.2
"""For how long a file must not change before it is read. The beginning of a list is a list, too."""
_MOST_LOOKS = 50
"""At a file that does not come to rest; then it is read as it is."""

_State: TypeAlias = "dict[Path, tuple[int, ...] | None]"


class PolicyWatch:
    """A thread that reloads a policy whenever one of its files changes. End it with `close`, or use it in `with`.

    Args:
        files: The files to look at; asked anew each time.
        reload: Reads the policy again. What it raises is logged. Where the change could not be recorded, it is tried
            again at once, and where something else than the content of the files may be to blame, after a pause.
        seconds: How often to look.

    Raises:
        InvalidInput: Nobody can wait for that time.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], reload: Callable[[], object], seconds: float) -> None:
        self._files = files
        self._reload = reload
        self._seconds = check_seconds(seconds, where="seconds")
        self._seen: _State = {}
        """At first nothing, so that what changed since the policy was read counts."""
        self._again_at = math.inf
        """When to read again although nothing seems to have changed."""
        self._pause = _COARSE_SECONDS
        self._start()
        mend_after_fork(self)

    def _start(self) -> None:
        self._lost = False
        self._starting = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), name="apl-guard policy", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """In the child of a fork, where threads end: look on. A child that makes no call of the guard need not."""
        if self._lost:
            with self._starting:
                if self._lost:
                    self._start()

    def after_fork(self) -> None:
        """In the child of a fork. A thread of the parent may have held the lock."""
        self._lost = not self._ended.is_set()
        self._starting = threading.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether it looks no more."""
        return self._ended.is_set()

    def close(self) -> None:
        """Stop looking."""
        self._lost = False
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds):
            try:
                self._look_and_reload(ended)
            except Exception as error:
                _log.error("the changed policy is not put in force, the one before stays: %s", error)
                self._seen |= {path: _look(path) for path in self._files() if path not in self._seen}
                if isinstance(error, AuditUnavailable):
                    self._seen = {}  # the file is not to blame: tried again, until the change can be recorded
                elif _may_pass(error):
                    self._again_at = monotonic() + self._pause
                    self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def _look_and_reload(self, ended: threading.Event) -> None:
        # Taken before reading: what is written while we read shows as a change the next time.
        state = self._state()
        if state == self._seen and monotonic() < self._again_at:
            return
        for _ in range(_MOST_LOOKS):
            before = state
            if ended.wait(_REST_SECONDS):
                return
            state = self._state()
            if state == before:
                break
        is_first, is_change = not self._seen, state != self._seen
        self._seen, self._again_at = state, math.inf
        changed = self._reload()
        if changed:
            _log.warning("the changed policy is in force")
        elif is_change and not is_first:
            _log.warning("the policy file says the same as before")
        self._seen |= {path: _look(path) for path in self._files() if path not in self._seen}
        self._pause = _COARSE_SECONDS
        if is_change:
            # Written once more within one tick of the file system's clock, a file would look the same.
            self._again_at = monotonic() + _COARSE_SECONDS

    def _state(self) -> _State:
        return {path: _look(path) for path in self._files()}


def _look(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written, exchanged or may be read by others; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def _may_pass(error: Exception) -> bool:
    """Whether the same files may be good later: a prefix that comes, a registry or a disk that answers again."""
    return isinstance(error, GuardUnavailable | OSError | MemoryError) or isinstance(error.__cause__, OSError)
