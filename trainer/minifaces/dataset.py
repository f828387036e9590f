"""Draws pictures by the thousand, on all cores, each from a seed of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .faces import SIZE, Style
from .pictures import Picture

Images = npt.NDArray[np.uint8]
"""(n, 64, 64, 3)"""

_CHUNK = 250


def draw_all(pictures: Sequence[Picture], seed: int, style: Style = "plain") -> Images:
    """The pictures, drawn; picture i depends on ``seed`` and i alone, however many cores there are."""
    jobs = [(pictures[i : i + _CHUNK], seed, i, style) for i in range(0, len(pictures), _CHUNK)]
    if not jobs:
        return np.empty((0, SIZE, SIZE, 3), np.uint8)
    cores = min(len(jobs), os.cpu_count() or 1)
    if cores == 1:
        return np.concatenate([_draw_chunk(job) for job in jobs])
    # spawn: the caller may hold torch's thread pool, which does not survive a fork
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return np.concatenate(pool.map(_draw_chunk, jobs, chunksize=1))


def _draw_chunk(job: tuple[Sequence[Picture], int, int, Style]) -> Images:
    pictures, seed, first, style = job
    drawn = [picture.draw(random.Random(f"{seed}:{first + i}"), style) for i, picture in enumerate(pictures)]
    return np.stack([np.asarray(image) for image in drawn])
