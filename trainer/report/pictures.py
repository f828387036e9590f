"""Pictures as bytes of a file, and as addresses that hold them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["address", "png", "png_address", "sheet"]

_LARGEST_SIDE = 256
"""Of a picture in a page."""


def png(picture: npt.NDArray[np.uint8] | Any, **options: Any) -> bytes:
    """A picture as the bytes of a PNG file.

    Args:
        picture: Shape (H, W, 3), or an image of Pillow.
        options: Of Pillow, such as `optimize` or `compress_level`.

    Example:
        >>> png(np.zeros((2, 2, 3), np.uint8))[:4]
        b'\x89PNG'
    """
    stream = io.BytesIO()
    _image(picture).save(stream, format="PNG", **options)
    return stream.getvalue()


def png_address(content: bytes) -> str:
    """An address that holds a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def address(picture: npt.NDArray[np.uint8]) -> str:
    """An address that holds a picture, shape (H, W, 3); large ones are reduced.

    Example:
        >>> address(np.zeros((2, 2, 3), np.uint8))[:22], address(np.zeros((300, 2, 3), np.uint8))[:23]
        ('data:image/png;base64,', 'data:image/jpeg;base64,')
    """
    image = _image(picture)
    if max(image.size) <= _LARGEST_SIDE:
        return png_address(png(image, optimize=True))
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def sheet(rows: Mapping[str, Sequence[Image]], side: int, columns: Mapping[str, int] | None = None) -> Image:
    """Images in rows, with the name of each row on its left, and of each group of columns above it.

    Args:
        rows: Name → images, as many in each row.
        side: Of each image, in pixels.
        columns: The name of each group, and how many columns it has; none are named where there are no groups.

    Example:
        >>> from PIL import Image
        >>> one = Image.new("RGB", (64, 64))
        >>> sheet({"plain": [one], "guarded": [one]}, 96, {"one": 1}).size > (96, 192)
        True
    """
    from PIL import Image as Images
    from PIL import ImageDraw, ImageFont

    size = max(13, side // 8)
    font = ImageFont.load_default(size)
    left = round(max(font.getlength(name) for name in rows)) + 12
    top = round(1.7 * size) if columns else 0
    width = side * max(map(len, rows.values()))
    whole = Images.new("RGB", (left + width, top + side * len(rows)), "white")
    pen = ImageDraw.Draw(whole)
    for k, (name, images) in enumerate(rows.items()):
        pen.text((left - 6, top + (k + 0.5) * side), name, fill="black", font=font, anchor="rm")
        for column, image in enumerate(images):
            whole.paste(image.resize((side, side), Images.Resampling.LANCZOS), (left + column * side, top + k * side))
    at = 0
    for name, count in (columns or {}).items():
        pen.text((left + at * side + 2, top / 2), name, fill="black", font=font, anchor="lm")
        at += count
        if at * side < width:
            pen.line([(left + at * side - 1, 0), (left + at * side - 1, whole.height)], fill="white", width=4)
    return whole


def _image(picture: Any) -> Any:
    from PIL import Image

    return picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
