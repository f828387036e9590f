"""Pictures out of an answer: only of known formats, and only as large as they may be."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterable
from typing import Any

from PIL import Image

from .http_client import RemoteAnswerInvalid

__all__ = ["decode", "decode_base64", "together"]

MAX_PIXELS = 64 << 20
"""The largest picture that is decoded: 8192 × 8192."""
_MAX_PIXELS_TOGETHER = 4 * MAX_PIXELS
_FORMATS = ("PNG", "JPEG", "WEBP")


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture.

    Args:
        content: PNG, JPEG or WebP.
        max_pixels: The largest product of width and height; checked before the pixels are unpacked.

    Raises:
        RemoteAnswerInvalid: It is no such picture, too large, or cut off.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise RemoteAnswerInvalid(f"an image of {image.width}×{image.height} pixels; at most {max_pixels} are read")
        image.load()
    except RemoteAnswerInvalid:
        raise
    except Exception as error:
        # Decoders raise a dozen different types for damaged input.
        raise RemoteAnswerInvalid(
            f"the answer holds no image that can be decoded ({type(error).__name__}); expected {', '.join(_FORMATS)}"
        ) from error
    return image


def decode_base64(text: Any) -> Image.Image:
    """Decode a picture that stands in an answer as base64, with or without `data:…;base64,` in front.

    Raises:
        RemoteAnswerInvalid: It is something else. A URL is not followed.
    """
    if not isinstance(text, str):
        raise RemoteAnswerInvalid(f"found {type(text).__name__} in place of an image; expected base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RemoteAnswerInvalid("the answer holds no base64 in place of an image") from error
    return decode(content)


def together(images: Iterable[Image.Image]) -> list[Image.Image]:
    """The pictures of one answer, as long as all of them fit into memory: packed, a plain one takes next to nothing.

    Args:
        images: The pictures, each decoded when it is asked for.

    Raises:
        RemoteAnswerInvalid: They are too large together.
    """
    found: list[Image.Image] = []
    pixels = 0
    for image in images:
        pixels += image.width * image.height
        if pixels > _MAX_PIXELS_TOGETHER:
            raise RemoteAnswerInvalid(f"images of more than {_MAX_PIXELS_TOGETHER} pixels together, which are not read")
        found.append(image)
    return found
