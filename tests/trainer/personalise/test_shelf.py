"""What was learned is kept once, however many processes want it at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from apl_guard.errors import StorageFailed
from apl_guard.trainer.personalise.shelf import kept

_LEARN = """
import sys, time
from pathlib import Path
from apl_guard.trainer.personalise.shelf import kept

def make(checkpoint, folder):
    with Path(sys.argv[1]).open("a") as learned:
        learned.write("once\\n")
    checkpoint.write_text("half of it")
    time.sleep(1.5)
    assert checkpoint.read_text() == "half of it"
    folder.mkdir()
    (folder / "weights").write_text("all of it")

print(kept("example", {"steps": 2}, make))
"""


def test_processes_that_want_the_same_wait_for_the_first(tmp_path: Path) -> None:
    """Three real processes at once: one learns, all get its folder, and nobody's work is taken away."""
    env = os.environ | {"APL_GUARD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(_LEARN), str(tmp_path / "learned")]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = [process.communicate(timeout=120)[0].strip() for process in running]

    assert [process.returncode for process in running] == [0, 0, 0]
    assert (tmp_path / "learned").read_text() == "once\n"
    assert len(set(folders)) == 1
    assert (Path(folders[0]) / "weights").read_text() == "all of it"


def test_a_cache_that_cannot_be_written_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what cannot be kept, and nothing is learned."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))

    with pytest.raises(StorageFailed, match="cannot be kept"):
        kept("example", {"steps": 2}, lambda checkpoint, folder: pytest.fail("nothing may be learned"))
