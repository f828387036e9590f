"""Pictures and captions as people have them: held sideways, of 16 bits, damaged, in other encodings."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apl_guard.errors import InvalidInput
from apl_guard.trainer.data.folders import captioned_images, read_image


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_of_a_camera_held_sideways_is_read_upright(tmp_path: Path) -> None:
    """What the camera wrote down about how it was held is obeyed; a face on its side would not be found."""
    upright = Image.new("RGB", (4, 8), "red")
    upright.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)

    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(upright))


def test_a_picture_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    """They are scaled to bytes and not cut off at the 255th."""
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")

    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_picture_that_fits_into_no_memory_is_a_typed_error(tmp_path: Path) -> None:
    """Pillow's own refusal of 3.6 thousand million pixels becomes one that names the file."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)

    with pytest.raises(InvalidInput, match=r"a\.png: not an image that can be read"):
        read_image(tmp_path / "a.png")


def test_captions_may_hold_any_character_and_empty_lines(tmp_path: Path) -> None:
    """A separator of lines inside a JSON text ends no line, and an empty line is no caption."""
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "1.png", "text": "a\u2028b"}\n\n', encoding="utf-8")

    assert captioned_images(tmp_path, None) == [(tmp_path / "1.png", "a\u2028b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b'{"file_name": "1.png", "text": 5}', "line 1 is not an object"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": "caf\xe9"}', "not UTF-8"),
        ("1.txt", b"caf\xe9", "not UTF-8"),
    ],
)
def test_captions_that_are_none_are_typed_errors(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """A number for a caption and captions in another encoding are refused with the name of the file."""
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidInput, match=message) as caught:
        captioned_images(tmp_path, None)

    assert caught.value.where == str(tmp_path / name)
