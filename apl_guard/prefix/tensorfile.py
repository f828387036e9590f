"""A reader of safetensors files that trusts nothing in them.

The format itself allows much that a prefix must not hold: keys twice, huge headers, tensors that overlap or
leave gaps, integer types, values that are not finite, names with control characters. Every limit is checked
before the work that it limits, so that no file costs more than a few milliseconds and megabytes.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from apl_guard.errors import PrefixInvalid
from apl_guard.printable import printable
from apl_guard.storage import read_regular

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MAX_FILE_BYTES", "MAX_VECTORS", "MAX_WIDTH", "parse_model", "parse_tensors", "read_file"]

Model = TypeVar("Model", bound=BaseModel)

MAX_FILE_BYTES = 4 << 20
MAX_HEADER_BYTES = 64 << 10
MAX_TENSORS = 8
MAX_VECTORS = 64
MAX_WIDTH = 8192
_MAX_JSON_DEPTH = 16
# NumPy has no bfloat16: it is the upper half of a float32.
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def read_file(path: Path, *, limit: int = MAX_FILE_BYTES, follow_links: bool = True) -> bytes:
    """Read a regular file of a bounded size. Pipes and devices, which could block or never end, are refused.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        follow_links: Whether the file may be a symbolic link.

    Raises:
        PrefixInvalid: There is none, it is no regular file, or it is too large.
    """
    try:
        return read_regular(path, limit, follow_links=follow_links)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or "impossible path"
        raise PrefixInvalid(f"cannot be read ({reason}); expected a prefix", where=path) from error


def parse_tensors(content: bytes, where: Path) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Parse a safetensors file of a few float matrices.

    Args:
        content: The file.
        where: Its path, for messages.

    Returns:
        Name → matrix as float32, every value finite, and the metadata of the header.

    Raises:
        PrefixInvalid: Anything about the file is out of order.
    """
    if len(content) > MAX_FILE_BYTES:
        raise PrefixInvalid(f"larger than {MAX_FILE_BYTES} bytes; not a prefix", where=where)
    if len(content) < 8:
        raise PrefixInvalid(f"{len(content)} bytes; too short for a safetensors file", where=where)
    (length,) = struct.unpack("<Q", content[:8])
    if length > MAX_HEADER_BYTES or 8 + length > len(content):
        raise PrefixInvalid(f"header of {length} bytes; the file is cut off or is no prefix", where=where)
    if not content.startswith(b"{", 8):
        raise PrefixInvalid("the header is no JSON object; not a safetensors file", where=where)
    header = parse_json(content[8 : 8 + length], "header", where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise PrefixInvalid("the metadata of the header is not made of texts", where=where)
    if len(header) > MAX_TENSORS:
        raise PrefixInvalid(f"{len(header)} tensors; a prefix has one for each text encoder", where=where)
    body = content[8 + length :]
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _parse_entry(entry, f"tensor '{printable(name)}'", where)
        if end > len(body):
            raise PrefixInvalid(f"tensor '{printable(name)}' lies outside the file", where=where)
        places.append((begin, end))
        tensors[name] = _as_float32(np.frombuffer(body[begin:end], dtype)).reshape(shape)
        if not np.isfinite(tensors[name]).all():
            raise PrefixInvalid(f"tensor '{printable(name)}' holds values that are not finite", where=where)
    # Nothing may hide between, under or behind the tensors.
    places.sort()
    if [begin for begin, _ in places] != [0, *(end for _, end in places)][:-1] or (
        (places[-1][1] if places else 0) != len(body)
    ):
        raise PrefixInvalid("the tensors do not fill the file exactly", where=where)
    return tensors, metadata


def _as_float32(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if stored.dtype == _DTYPES["BF16"]:
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype("<f4")


def _parse_entry(entry: object, what: str, where: Path) -> tuple[np.dtype[Any], list[int], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise PrefixInvalid(f"{what} is described wrongly", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        found = printable(str(dtype))
        raise PrefixInvalid(f"{what} has dtype '{found}', expected one of {sorted(_DTYPES)}", where=where)
    if not _are_sizes(shape) or not _are_sizes(offsets) or offsets[0] > offsets[1]:
        raise PrefixInvalid(f"{what} has no valid shape or place", where=where)
    if not (1 <= shape[0] <= MAX_VECTORS and 1 <= shape[1] <= MAX_WIDTH):
        raise PrefixInvalid(
            f"{what} has shape {tuple(shape)}, expected (1 … {MAX_VECTORS}, 1 … {MAX_WIDTH})", where=where
        )
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise PrefixInvalid(f"{what} has another size than its shape", where=where)
    return _DTYPES[dtype], shape, offsets[0], offsets[1]


def _are_sizes(found: object) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(type(i) is int and 0 <= i < 1 << 40 for i in found)


def parse_json(text: bytes | str, what: str, where: Path) -> dict[str, Any]:
    """Parse an object strictly: UTF-8, no key twice, no number beyond 64 bits, no deep nesting.

    Raises:
        PrefixInvalid: It is not such an object.

    Example:
        >>> parse_json('{"n": 1, "n": 2}', "header", Path("x"))
        Traceback (most recent call last):
        apl_guard.errors.PrefixInvalid: x: the header is not valid JSON
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    def whole(digits: str) -> int:
        if len(digits) > 19:
            raise ValueError("a number of more than 19 digits")
        return int(digits)

    def fraction(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise ValueError("a number beyond 64 bits")
        return number

    try:
        # Decoded here, because the library would also take UTF-16 and UTF-32.
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(
            decoded, object_pairs_hook=unique, parse_constant=refuse, parse_int=whole, parse_float=fraction
        )
    except (ValueError, RecursionError) as error:
        raise PrefixInvalid(f"the {what} is not valid JSON", where=where) from error
    if not isinstance(found, dict):
        raise PrefixInvalid(f"the {what} is not a JSON object", where=where)
    if _depth(found) > _MAX_JSON_DEPTH:
        raise PrefixInvalid(f"the {what} is nested deeper than {_MAX_JSON_DEPTH}", where=where)
    return found


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def parse_model(model: type[Model], text: bytes | str, what: str, where: Path) -> Model:
    """Parse an object as strictly into a model of pydantic.

    Raises:
        PrefixInvalid: It is not such an object. The message names the first field that is wrong.
    """
    try:
        return model.model_validate(parse_json(text, what, where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise PrefixInvalid(f"field '{printable(field)}' of the {what}: {first['msg']}", where=where) from error
