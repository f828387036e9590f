"""Draws pictures by the thousand, on all cores, each from a seed of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from apl_guard.errors import TrainingFailed

from .faces import SIZE, Style
from .pictures import Picture

Images = npt.NDArray[np.uint8]
"""(n, 64, 64, 3)"""

_CHUNK = 250
_Job = tuple[Sequence[Picture], int, int, Style]


def draw_all(pictures: Sequence[Picture], seed: int, style: Style = "plain", *, progress: bool = False) -> Images:
    """The pictures, drawn; picture i depends on ``seed`` and i alone, however many cores there are.

    Raises:
        TrainingFailed: A process that draws was ended from outside, such as for lack of memory.
    """
    jobs = [(pictures[i : i + _CHUNK], seed, i, style) for i in range(0, len(pictures), _CHUNK)]
    if not jobs:
        return np.empty((0, SIZE, SIZE, 3), np.uint8)
    cores = min(len(jobs), os.cpu_count() or 1)
    drawn = []
    with (
        tqdm(total=len(pictures), desc="drawing", unit="img", disable=not progress) as bar,
        _drawing(jobs, cores) as parts,
    ):
        for part in parts:
            drawn.append(part)
            bar.update(len(part))
    return np.concatenate(drawn)


@contextmanager
def _drawing(jobs: Sequence[_Job], cores: int) -> Iterator[Iterator[Images]]:
    """The jobs, done one after the other as they are asked for, on so many cores."""
    if cores == 1:
        yield map(_draw_chunk, jobs)
        return
    # spawn: the caller may hold torch's thread pool, which does not survive a fork
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(cores, context, _end_without_us, (theirs,))
    try:
        with _deaf_children():
            parts = pool.map(_draw_chunk, jobs)
        yield parts
    except BrokenProcessPool as error:
        raise TrainingFailed(
            "a process that draws images was ended, such as for lack of memory; give the command again"
        ) from error
    finally:
        # What they have begun, less than a second, is waited for: one that ends while it hands over a part leaves who
        # reads it waiting for the rest for ever.
        pool.shutdown(cancel_futures=True)
        ours.close()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C, which goes to all of a terminal: it is for this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Held back and not ignored: they inherit that, and what comes meanwhile is heard by this one afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_without_us(theirs: Connection) -> None:
    """End this process when the one that asked closes its end of a pipe, or is killed; nobody else would tell."""

    def wait() -> None:
        with suppress(OSError):  # a closed pipe, on Windows
            theirs.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw_chunk(job: _Job) -> Images:
    pictures, seed, first, style = job
    drawn = [picture.draw(random.Random(f"{seed}:{first + i}"), style) for i, picture in enumerate(pictures)]
    return np.stack([np.asarray(image) for image in drawn])
