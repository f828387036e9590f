"""Looks at something far away, in a thread that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from time import monotonic

from apl_guard.forks import mend_after_fork

__all__ = ["Looks"]


class _Look:
    """One look, for all who wait for it."""

    def __init__(self, *, is_asked: bool = True) -> None:
        self.is_asked = is_asked
        self.began = monotonic()
        self.ended = threading.Event()
        self.error: Exception | None = None


class Looks:
    """A daemon thread that looks when it is asked to, and of its own accord. It starts with the first question.

    It ends with the object. In the child of a fork, where threads end, another one starts with the next question.

    Args:
        look: Looks once. What it raises is for those who asked.
        is_due: Whether to look of its own accord now.
        pause: Seconds after which that is asked; None for never.
    """

    def __init__(self, look: Callable[[], None], is_due: Callable[[], bool], pause: float | None) -> None:
        self._look = look
        self._is_due = is_due
        self._pause = None if pause is None else min(pause, threading.TIMEOUT_MAX)
        self.after_fork()
        mend_after_fork(self)

    def after_fork(self) -> None:
        """In the child of a fork. A thread of the parent may have held the lock, or been looking."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked: queue.SimpleQueue[_Look | None] = queue.SimpleQueue()
        self._running: _Look | None = None
        self._next: _Look | None = None

    def go_on(self) -> None:
        """Have the thread run, which looks of its own accord."""
        if self._thread is None and self._pause is not None:
            with self._lock:
                self._start()

    def wait(self, since: float, patience: float, *, is_needed: bool) -> None:
        """Wait for a look that began at a moment or later: the one that runs now, or the next one.

        Args:
            since: The moment, on the monotonic clock.
            patience: Seconds that it may take, counted from when the thread last began something.
            is_needed: Whether to wait also while the thread looks of its own accord, and so is late already.

        Raises:
            TimeoutError: It takes longer.
            Exception: Whatever the look raises.
        """
        with self._lock:
            running, look = self._running, self._running
            if running is not None and not (running.is_asked or is_needed):
                raise TimeoutError
            if look is None or look.began < since:
                if self._next is None:
                    self._next = _Look()
                    self._asked.put(self._next)
                look = self._next
            self._start()
        # Counted from there, nobody waits for what has been waited for already.
        until = patience + (look if running is None else running).began
        if not look.ended.wait(max(0.0, until - monotonic())):
            raise TimeoutError
        if look.error is not None:
            raise look.error

    def _start(self) -> None:
        if self._thread is None:
            work = (weakref.ref(self), self._asked, self._pause)
            thread = threading.Thread(target=_work, args=work, name="apl-guard registry", daemon=True)
            thread.start()
            self._thread = thread
            weakref.finalize(self, self._asked.put, None).atexit = False

    def _run(self, look: _Look | None) -> None:
        """Look for those who asked; None for a look of its own accord, if that is due."""
        if look is None and not self._is_due():
            return
        with self._lock:
            if look is None:
                look = _Look(is_asked=False)
            else:
                self._next = None
            look.began = monotonic()
            self._running = look
        try:
            self._look()
        except Exception as error:
            look.error = error
        with self._lock:
            self._running = None
        look.ended.set()


def _work(of: weakref.ref[Looks], asked: queue.SimpleQueue[_Look | None], pause: float | None) -> None:
    timeout = None if pause is None else 0.0  # in the child of a fork a look may be due already
    while True:
        look: _Look | None = None
        try:
            look = asked.get(timeout=timeout)
        except queue.Empty:
            pass
        else:
            if look is None:
                return
        timeout = pause
        looks = of()
        if looks is None:
            return
        looks._run(look)
        del looks, look
