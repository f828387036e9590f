"""Drawing on several cores, stopped from outside: it ends, with an error or with the process that asked for it."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apl_guard.errors import TrainingFailed
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.pictures import Picture, random_picture

_PROGRAM = """
import random, signal, sys
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.pictures import random_picture

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    rng = random.Random(0)
    try:
        draw_all([random_picture(rng) for _ in range(20_000)], 0, progress=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def _pictures(count: int) -> list[Picture]:
    rng = random.Random(0)
    return [random_picture(rng) for _ in range(count)]


def _until(condition: Callable[[], object], patience: float = 300.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core draws in this process")
def test_a_process_that_is_killed_while_it_draws_ends_the_drawing_with_an_error() -> None:
    """As where memory runs out; the others waited for its pictures for ever."""
    raised: list[Exception] = []

    def draw() -> None:
        try:
            draw_all(_pictures(20_000), seed=0)
        except TrainingFailed as error:
            raised.append(error)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    _until(multiprocessing.active_children)
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    thread.join(120)

    assert "give the command again" in str(raised[0])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_those_who_draw_end_with_the_process_that_asked_and_write_no_traceback(tmp_path: Path, how: int) -> None:
    """After Ctrl-C, which all in a terminal hear, and after a kill, of which nobody tells them."""
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    with (tmp_path / "errors").open("wb") as errors:
        asked = subprocess.Popen([sys.executable, str(program)], stderr=errors, start_new_session=True)
    _until(lambda: re.search("[1-9][0-9]*/20000", (tmp_path / "errors").read_text()))  # some are drawn
    (os.killpg if how == signal.SIGINT else os.kill)(asked.pid, how)

    assert asked.wait(120) == (130 if how == signal.SIGINT else -how)
    _until(lambda: not _is_there(asked.pid), 60)
    assert "Traceback" not in (tmp_path / "errors").read_text()


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_drawn_does_not_depend_on_how_many_draw() -> None:
    """On several cores as in this process."""
    several = draw_all(_pictures(300), seed=3)
    assert (several[:250] == draw_all(_pictures(250), seed=3)).all()
