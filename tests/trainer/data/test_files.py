"""Files that people name, where something else is in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apl_guard.errors import InvalidInput
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.folders import captioned_images, read_image, read_prompts
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


def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture is a program, which Pillow would hand to Ghostscript."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'ran'}'\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )

    with pytest.raises(InvalidInput, match=r"a\.png.*expected PNG, JPEG or WebP"):
        read_image(tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()


def test_files_with_the_mark_of_windows_editors_are_read_as_they_look(tmp_path: Path) -> None:
    """ "UTF-8 with BOM": the mark is no part of the first prompt, and metadata.jsonl is still JSON."""
    (tmp_path / "prompts.txt").write_text("a red car\n", encoding="utf-8-sig")
    for name in ("one", "two"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "one.txt").write_text("a house", encoding="utf-8-sig")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "two.png", "text": "a dog"}', encoding="utf-8-sig")

    assert read_prompts(tmp_path / "prompts.txt") == ["a red car"]
    assert [text for _, text in captioned_images(tmp_path, default=None)] == ["a house", "a dog"]
