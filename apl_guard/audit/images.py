"""Which call released an image: digests of images, and the way from them into the log.

A digest is of pixels, not of a file. PNG, lossless WebP and changed metadata leave it as it is; JPEG, another size or
one changed pixel make it another. `docs/audit-format.md` says how it is made.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from apl_guard.audit.reading import read_log
from apl_guard.audit.record import Record
from apl_guard.detect.pictures import Picture, read_pictures
from apl_guard.errors import InvalidInput, OutputCheckFailed
from apl_guard.storage import read_regular

__all__ = ["CHANGED_PIXELS", "digest_of_file", "find_image", "image_digest", "image_digests", "releases"]

CHANGED_PIXELS = "JPEG, another size or one changed pixel make it another image"
"""Why an image that looks the same may lead nowhere."""
_MAX_BYTES = 1 << 28
_FEW = 20
"""Calls that are named."""

_FORMATS = ("PNG", "WEBP", "JPEG", "TIFF", "BMP")
"""What may be looked into: the file may come from anybody, and each decoder is one more that can be attacked."""


def image_digest(picture: Picture) -> str:
    """The digest of an image, in hex.

    Example:
        >>> image_digest(np.zeros((2, 3, 3), np.uint8))[:16]
        '25fe51ac3747fe72'
    """
    height, width, _ = picture.shape
    found = hashlib.sha256(f"apl-guard image 1 {width} {height}\n".encode())
    found.update(np.ascontiguousarray(picture).data)
    return found.hexdigest()


def image_digests(output: object, images: int) -> tuple[str, ...] | None:
    """The digests of the images that a backend returned, in their order.

    Args:
        output: In any type that `read_pictures` reads.
        images: How many the backend says there are.

    Returns:
        None where there are no finished pictures, such as where latents were asked for, or another number of them.
    """
    try:
        digests = tuple(map(image_digest, read_pictures(output)))
    except Exception:  # it may be whatever a foreign adapter or function returns; the record says that there is none
        return None
    return digests if len(digests) == images else None


def digest_of_file(path: Path) -> str:
    """The digest of the image in a file.

    Raises:
        InvalidInput: It holds no image that can be decoded, or more than one.
        OSError: It cannot be read.
    """
    from PIL import Image

    content = read_regular(path, _MAX_BYTES)
    try:
        (picture,) = read_pictures(Image.open(io.BytesIO(content), formats=_FORMATS))
    except OutputCheckFailed as error:
        raise InvalidInput(str(error), where=path) from error
    except Exception as error:  # decoders raise a dozen different types for damaged input
        raise InvalidInput(
            f"holds no image that can be decoded ({type(error).__name__}); expected one of {', '.join(_FORMATS)}",
            where=path,
        ) from error
    return image_digest(picture)


def releases(record: Record, digest: str) -> bool:
    """Whether a record says that an image with this digest was released."""
    return record.fields["event"] == "guard.outcome" and digest in (record.fields.get("image_sha256") or ())


def find_image(folder: Path, digest: str) -> str:
    """The decision of the call that released an image.

    Raises:
        InvalidInput: There is no such call, or more than one.
    """
    found = [
        str(each.record.fields.get("decision_id"))
        for each in read_log(folder, containing=f'"{digest}"'.encode())
        if releases(each.record, digest)
    ]
    if not found:
        raise InvalidInput(f"no call released an image with these pixels; {CHANGED_PIXELS}", where=folder)
    if len(found) > 1:
        named = ", ".join(found[:_FEW]) + (", …" if len(found) > _FEW else "")
        raise InvalidInput(f"{len(found)} calls released an image with these pixels; name one: {named}", where=folder)
    return found[0]
