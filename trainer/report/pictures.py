"""Pictures as bytes of a file, and as addresses that hold them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["address", "png", "png_address"]

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


def _image(picture: Any) -> Any:
    from PIL import Image

    return picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
