"""A reader of safetensors files that trusts nothing in them.

The format itself allows much that a prefix must not hold: keys twice, huge headers, tensors that overlap or
leave gaps, integer types, values that are not finite, names with control characters.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from apl_guard.errors import PrefixInvalid

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["parse_json", "parse_tensors", "printable"]

MAX_FILE_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 20
_MAX_TENSORS = 16
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def parse_tensors(content: bytes, where: Path) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Parse a safetensors file of a few float matrices.

    Args:
        content: The file.
        where: Its path, for messages.

    Returns:
        Name → matrix as float32, and the metadata of the header.

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
    header = parse_json(content[8 : 8 + length], "header", where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise PrefixInvalid("the metadata of the header is not made of texts", where=where)
    if len(header) > _MAX_TENSORS:
        raise PrefixInvalid(f"{len(header)} tensors; a prefix has one for each text encoder", where=where)
    body = content[8 + length :]
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _parse_entry(entry, f"tensor '{printable(name)}'", where)
        if end > len(body):
            raise PrefixInvalid(f"tensor '{printable(name)}' lies outside the file", where=where)
        places.append((begin, end))
        tensors[name] = np.frombuffer(body[begin:end], dtype).reshape(shape).astype("<f4")
    # Nothing may hide between, under or behind the tensors.
    places.sort()
    if [begin for begin, _ in places] != [0, *(end for _, end in places)][:-1] or (
        (places[-1][1] if places else 0) != len(body)
    ):
        raise PrefixInvalid("the tensors do not fill the file exactly", where=where)
    return tensors, metadata


def _parse_entry(entry: object, what: str, where: Path) -> tuple[np.dtype[Any], list[int], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise PrefixInvalid(f"{what} is described wrongly", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        found = printable(str(dtype))
        raise PrefixInvalid(f"{what} has dtype '{found}', expected one of {sorted(_DTYPES)}", where=where)
    if not _are_sizes(shape) or not _are_sizes(offsets) or offsets[0] > offsets[1]:
        raise PrefixInvalid(f"{what} has no valid shape or place", where=where)
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise PrefixInvalid(f"{what} has another size than its shape", where=where)
    return _DTYPES[dtype], shape, offsets[0], offsets[1]


def _are_sizes(found: object) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(type(i) is int and 0 <= i < 1 << 40 for i in found)


def parse_json(text: bytes | str, what: str, where: Path) -> dict[str, Any]:
    """Parse an object strictly: no key twice, no NaN, no deep nesting.

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

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise PrefixInvalid(f"the {what} is not valid JSON", where=where) from error
    if not isinstance(found, dict):
        raise PrefixInvalid(f"the {what} is not a JSON object", where=where)
    return found


def printable(text: str) -> str:
    """Text from a stranger's file, made safe for a terminal and a log.

    Example:
        >>> printable("evil" + chr(27) + "[2J")
        'evil?[2J'
    """
    return re.sub(r"[^\x20-\x7e]", "?", text)[:60]
