"""Files that people name, where something else is in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apl_guard.errors import InvalidInput
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.folders import read_image, read_prompts
from apl_guard.trainer.data.identities import load_identities
from apl_guard.trainer.evaluate.curves import read_curves


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("read", [TrainConfig.load, load_identities, read_prompts, read_image, read_curves])
def test_neither_a_pipe_nor_a_folder_is_read(read: Callable[[Path], Any], kind: str, tmp_path: Path) -> None:
    """A pipe nobody writes to must not hold the program up."""
    path = tmp_path / "a.png"
    (os.mkfifo if kind == "pipe" else os.mkdir)(path)

    with pytest.raises(InvalidInput, match=r"a\.png"):
        read(path)
