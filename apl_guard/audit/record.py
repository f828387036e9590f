"""A record: one line of ASCII JSON that names its place in the row of its writer and the hash of the one before."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isinf
from typing import Any

from apl_guard.audit.checkpoint import AS_TEXT, timestamp_of

__all__ = ["MAX_LINE", "NO_PREVIOUS", "Record", "encode_body", "encode_line"]

MAX_LINE = 1 << 20
NO_PREVIOUS = "0" * 64
_HEAD = re.compile(rb'\{"writer":"([0-9a-f]{24})","seq":(0|[1-9][0-9]{0,15}),"prev":"([0-9a-f]{64})",')
_HEAD_ROOM = 256
_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class Record:
    """A line, taken apart."""

    writer: str
    seq: int
    """Its place in the row of its writer, from 0."""
    prev: str
    """Hash of the line before, in hex."""
    fields: Mapping[str, Any]
    """Everything else."""

    @classmethod
    def parse(cls, line: bytes) -> Record:
        """Read a line, without its end.

        Raises:
            ValueError: It is no record. The message says what is wrong, without anything of its content.

        Example:
            >>> line = encode_line("ab" * 12, 0, NO_PREVIOUS, encode_body("guard.outcome", {"images": 1}))
            >>> Record.parse(line).fields["images"]
            1
        """
        writer, seq, prev = cls.head(line)
        try:
            fields = _decoder.decode(line.decode("ascii"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError("not JSON") from error
        for name in ("writer", "seq", "prev"):
            del fields[name]
        for name in ("event", "timestamp"):
            if not isinstance(fields.get(name), str):
                raise ValueError(f"'{name}' is missing")
        if not _TIMESTAMP.fullmatch(fields["timestamp"]):
            raise ValueError("'timestamp' is none that a log writes")
        for name, is_so in _FORMS.items():
            if name in fields and not is_so(fields[name]):
                raise ValueError(f"'{name}' has the wrong form")
        return cls(writer, seq, prev, fields)

    @staticmethod
    def head(line: bytes) -> tuple[str, int, str]:
        """Writer, place and hash of the line before: what the chain needs, without reading the rest.

        Raises:
            ValueError: It is no record.
        """
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        found = _HEAD.match(line)
        if found is None or not line.endswith(b"}") or not line.isascii():
            raise ValueError("not a record" + (AS_TEXT if line.endswith(b"\r") else ""))
        return found[1].decode(), int(found[2]), found[3].decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands there twice")  # of which readers take one or the other
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(number: str) -> float:
    if isinf(found := float(number)):
        raise ValueError("a number is not finite")
    return found


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_FORMS: dict[str, Callable[[Any], bool]] = {
    "decision_id": lambda value: isinstance(value, str),
    "policy": lambda value: isinstance(value, dict),
    "subject": lambda value: isinstance(value, str),
    "enc": lambda value: (
        isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("kid", "nonce", "ct"))
    ),
    "reasons": lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
    "image_sha256": lambda value: value is None or isinstance(value, list),
    "channels": lambda value: isinstance(value, list),
    "unsafe": lambda value: isinstance(value, list),
    "orphans": lambda value: isinstance(value, list),
    "records": lambda value: (
        isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value)
    ),
    "dead_writer": lambda value: isinstance(value, str),
    "torn": lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
    "previous": lambda value: (
        value is None
        or (
            isinstance(value, dict)
            and [type(value.get(name)) for name in ("segment", "bytes", "suspect")] == [int, int, bool]
        )
    ),
}
"""What those who read a log rely on. A record that is otherwise is found by `verify`, and stops no one of them."""


def encode_body(event: str, fields: Mapping[str, Any]) -> bytes:
    """The part of a line that does not depend on its place.

    Raises:
        ValueError: A number is not finite, or the record is too long.
        TypeError: A field is none that JSON knows.
    """
    now = time.time()
    body = {"event": event, "timestamp": timestamp_of(now), "mono_us": time.monotonic_ns() // 1000, **fields}
    encoded = _encoder.encode(body)[1:].encode("ascii")
    if len(encoded) > MAX_LINE - _HEAD_ROOM:
        raise ValueError(f"a record of {len(encoded)} bytes; a line holds at most {MAX_LINE}")
    return encoded


def encode_line(writer: str, seq: int, prev: str, body: bytes) -> bytes:
    """The line, without its end."""
    return b'{"writer":"%b","seq":%d,"prev":"%b",%b' % (writer.encode(), seq, prev.encode(), body)
