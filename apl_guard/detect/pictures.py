"""Finished pictures as bytes, whatever the type in which a backend returns them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from apl_guard.errors import OutputCheckFailed

__all__ = ["Picture", "read_pictures"]

Picture = npt.NDArray[np.uint8]
"""Shape (H, W, 3)."""
_TOLERANCE = 1e-3


def read_pictures(output: object) -> list[Picture]:
    """Read the pictures of what a pipe returned.

    Args:
        output: Pictures of PIL, NumPy (n, H, W, 3) or torch (n, 3, H, W), values in [0, 1] or bytes; a list of those,
            a tuple that begins with them, or an object that has them as `images` or, as that of Kandinsky 5, `image`.

    Raises:
        OutputCheckFailed: There are no pictures in it, such as where latents were asked for.

    Example:
        >>> read_pictures((np.ones((2, 4, 4, 3)), None))[1].shape
        (4, 4, 3)
        >>> read_pictures(np.full((1, 4, 4, 3), -2.5))
        Traceback (most recent call last):
        apl_guard.errors.OutputCheckFailed: an image holds values from -2.5 to -2.5; expected 0 to 1, or bytes
    """
    found: Any = getattr(output, "images", getattr(output, "image", output))
    if isinstance(found, tuple) and found and not _is_one(found[0]):
        found = found[0]
    return [_as_bytes(picture) for each in _each(found) for picture in _split(each)]


def _is_one(found: Any) -> bool:
    """Whether this is one picture, as in a tuple of pictures, and not all of them, as in one that begins with them."""
    return _is_of_pil(found) or getattr(found, "ndim", None) == 3


def _each(found: Any) -> Iterator[Any]:
    """What lies in lists and tuples, however deep."""
    if not isinstance(found, list | tuple):
        yield found
        return
    for inner in found:
        yield from _each(inner)


def _split(found: Any) -> list[npt.NDArray[Any]]:
    """One or several pictures in one object, each as (H, W, 3)."""
    if _is_of_pil(found):
        return [_read_pil(found)]
    if hasattr(found, "detach"):  # of torch, which keeps colours first
        values = found.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
        array = np.moveaxis(array, -3, -1) if array.ndim >= 3 else array
    else:
        array = found
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        shape = f" of shape {array.shape}" if isinstance(array, np.ndarray) else ""
        raise OutputCheckFailed(
            f"found {type(found).__name__}{shape}; expected images in three colours, as output_type 'pil', 'np' or "
            "'pt' gives them, in a list or as `images`"
        )
    return list(array) if array.ndim == 4 else [array]


def _is_of_pil(found: Any) -> bool:
    return hasattr(found, "convert") and hasattr(found, "mode")


def _read_pil(found: Any) -> Picture:
    """A picture of PIL, the right way up."""
    from PIL import ImageOps

    if (frames := getattr(found, "n_frames", 1)) != 1:
        raise OutputCheckFailed(f"an image holds {frames} images; expected one, such as by image.convert('RGB')")
    if found.mode == "F" or found.mode.startswith("I"):  # their values would be cut off at 255
        raise OutputCheckFailed(f"an image has mode '{found.mode}'; expected 8 bits a colour")
    try:
        # Photographs often lie on their side, with a note of how to turn them.
        return np.asarray(ImageOps.exif_transpose(found).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise OutputCheckFailed(f"an image cannot be decoded ({type(error).__name__})") from error


def _as_bytes(picture: npt.NDArray[Any]) -> Picture:
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise OutputCheckFailed(f"an image holds {picture.dtype}; expected floats or bytes")
    low, high = float(picture.min()), float(picture.max())
    if not (-_TOLERANCE <= low <= high <= 1 + _TOLERANCE):  # NaN too is no picture
        raise OutputCheckFailed(f"an image holds values from {low:g} to {high:g}; expected 0 to 1, or bytes")
    scaled: Picture = (picture * 255).round().clip(0, 255).astype(np.uint8)
    return scaled
