"""Runs slow work with a time limit, in a thread that nobody has to wait for."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

__all__ = ["Worker"]

_T = TypeVar("_T")
_MOST_WAITING = 1000
"""Given-up work counts until the thread comes to it, which in one that hangs may be never."""


@dataclass(eq=False)
class _Job:
    """Work that somebody waits for."""

    work: Callable[[], Any] | None
    """None once it is given up: it may hold pictures, and what runs before it may never end."""
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """One daemon thread. Work that takes too long is given up by who asked; what waits behind it is dropped."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A pool of concurrent.futures would be joined at exit, and so hang with work that hangs.
        self._places = threading.Semaphore(_MOST_WAITING)
        thread = threading.Thread(target=_work, args=(self._jobs, self._places), name=self._name, daemon=True)
        thread.start()
        _threads[thread] = self._jobs
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def run(self, work: Callable[[], _T], seconds: float) -> _T:
        """Run work.

        Args:
            work: What to run.
            seconds: How long to wait for it, waiting for other work included.

        Raises:
            TimeoutError: It did not end in time.
            Exception: Whatever the work raises.
        """
        if self._process != os.getpid():  # in the child of a fork, where the thread is gone
            with _restarting:
                if self._process != os.getpid():
                    self._start()
        until = monotonic() + seconds
        if not self._places.acquire(timeout=seconds):
            raise TimeoutError
        job = _Job(work)
        self._jobs.put(job)
        try:
            result: _T = job.future.result(until - monotonic())
        finally:
            if job.future.cancel():  # it has not begun, so that it never will
                job.work = None
        return result


_PATIENCE_SECONDS = 5.0
_restarting = threading.Lock()
_threads: weakref.WeakKeyDictionary[threading.Thread, queue.SimpleQueue[_Job | None]] = weakref.WeakKeyDictionary()


@atexit.register
def _end_all() -> None:
    """A thread that is inside a model when the interpreter goes away would abort the process: wait for it a little."""
    ending = list(_threads.items())
    for _, jobs in ending:
        jobs.put(None)
    end = monotonic() + _PATIENCE_SECONDS  # for all together
    for thread, _ in ending:
        thread.join(max(0.0, end - monotonic()))


def _work(jobs: queue.SimpleQueue[_Job | None], places: threading.Semaphore) -> None:
    while (job := jobs.get()) is not None:
        places.release()
        if job.future.set_running_or_notify_cancel() and job.work is not None:
            try:
                job.future.set_result(job.work())
            except BaseException as error:
                job.future.set_exception(error)
        del job
