"""The prompts and pictures that the user brings, in files and folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apl_guard.errors import InvalidInput
from apl_guard.storage import read_regular
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.families import family_of

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
"""What is in such files. Whatever their names are, Pillow would also read others, for some of which it starts programs:
Ghostscript runs what stands in a file of PostScript."""
_MAX_PROMPT_BYTES = 256 << 20


def read_prompts(path: Path) -> list[str]:
    """Read a text file with one prompt a line; empty lines do not count.

    Raises:
        InvalidInput: The file is missing, is not text, or has no prompt in it.
    """
    try:
        lines = read_regular(path, _MAX_PROMPT_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the prompts cannot be read: {error}", where=path) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidInput("no prompt in it; expected one a line", where=path)
    return prompts


def captioned_images(folder: Path, default: str | None) -> list[tuple[Path, str]]:
    """The images of a folder with their captions, from metadata.jsonl or from text files beside them.

    Args:
        folder: Where.
        default: The caption of an image that has none; None leaves it out.

    Raises:
        InvalidInput: There is no such folder, a line of metadata.jsonl is no caption, or a caption is not UTF-8.
    """
    if not folder.is_dir():
        raise InvalidInput("no such folder; expected one with images", where=folder)
    captions: dict[str, str] = {}
    index = folder / "metadata.jsonl"
    if index.is_file():
        # Not splitlines(): JSON may hold other characters at which it would cut.
        for number, line in enumerate(_read_text(index).split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, text = entry["file_name"], entry["text"]
                if not isinstance(name, str) or not isinstance(text, str):
                    raise TypeError
                captions[name] = text
            except (ValueError, KeyError, TypeError) as error:
                msg = f"line {number} is not an object with 'file_name' and 'text'"
                raise InvalidInput(msg, where=index) from error
    found: list[tuple[Path, str]] = []
    for path in image_files(folder):
        beside = path.with_suffix(".txt")
        text = captions.get(path.name) or (_read_text(beside).strip() if beside.is_file() else default)
        if text:
            found.append((path, text))
    return found


def captions_in(folder: Path) -> list[tuple[Path, str]]:
    """The images of a folder that have captions.

    Raises:
        InvalidInput: There is none.
    """
    if not (found := captioned_images(folder, default=None)):
        raise InvalidInput("no images with captions (NAME.txt beside NAME.png, or metadata.jsonl) in it", where=folder)
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with the mark in front of it that editors on Windows write
    except UnicodeDecodeError as error:
        raise InvalidInput("not UTF-8; save the captions as UTF-8", where=path) from error


def image_files(folder: Path) -> list[Path]:
    """The files of a folder that are images by their names, in the order of names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)


def read_image(path: Path) -> Image:
    """Read an image, PNG, JPEG or WebP, as RGB and upright; of several pictures in one file, the first.

    Raises:
        InvalidInput: It cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        if path.exists() and not path.is_file():  # a pipe, for which Pillow would wait
            raise OSError("not a regular file")
        with Image.open(path, formats=_FORMATS) as opened:
            upright = ImageOps.exif_transpose(opened)  # cameras write down how they were held
            if upright.mode.startswith(("I", "F")):
                return _as_bytes(upright).convert("RGB")
            return upright.convert("RGB")
    # A damaged file raises any of the middle ones, one of more pixels than fit into memory the last.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(
            f"not an image that can be read ({error}); expected PNG, JPEG or WebP", where=path
        ) from error


def _as_bytes(image: Image) -> Image:
    """A picture of more than 256 greys with as many; Pillow would make white of whatever is above the 255th.

    Raises:
        ValueError: Its values are of no range that is known.
    """
    from PIL import Image as Images

    grey = np.asarray(image, dtype=np.float64)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"greys from {grey.min():g} to {grey.max():g}; expected 8 or 16 bits")
    return Images.fromarray((grey / 257).round().astype(np.uint8))


@torch.no_grad()
def encode_images(pipe: Any, paths: Sequence[Path], config: TrainConfig) -> Tensor:
    """Latents of pictures, cut square from the middle and scaled to the size of a run: (M, C, H, W)."""
    from PIL import Image, ImageOps

    family = family_of(pipe, config)
    size, batch = (family.side, family.side), config.sampling_batch
    latents: list[Tensor] = []
    for start in range(0, len(paths), batch):
        pixels: list[Tensor] = []
        for path in paths[start : start + batch]:
            image = ImageOps.fit(read_image(path), size, Image.Resampling.LANCZOS)
            pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1)
        latents.append(family.latents_of(torch.stack(pixels)))
    return torch.cat(latents)
