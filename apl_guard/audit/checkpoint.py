"""A checkpoint: a signed line that says how far a writer's records go and what their hash is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import nan

from apl_guard.audit.seal_key import KeyState, signature_fits

__all__ = [
    "AS_TEXT",
    "LOG_FILE",
    "MAX_LINE",
    "Checkpoint",
    "Identity",
    "is_set_back",
    "key_file",
    "seconds_of",
    "timestamp_of",
]

AS_TEXT = ": its line ends as lines end on Windows, so it was copied as text rather than byte for byte"
"""What may be said of a line that is none."""
LOG_FILE = "log.json"
"""Name of the file that holds the identity."""
MAX_LINE = 4096
_VERSION = 1
_MAX_NUMBER = 2**53
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_WRITER = re.compile(r"[0-9a-f]{24}")
_LOG = re.compile(r"[0-9a-f]{32}")
_KEYS = {
    "checkpoint",
    "closed",
    "epoch",
    "generation",
    "history",
    "log",
    "next",
    "root",
    "size",
    "timestamp",
    "v",
    "writer",
}
_SIGNATURE = re.compile(rb'(\{.*),"signature":"([0-9a-f]{128})"\}')


@dataclass(frozen=True)
class Checkpoint:
    """What one line of `checkpoints.jsonl` says."""

    number: int
    """Counted from 0 over the whole log."""
    log: str
    writer: str
    size: int
    """How many records of this writer it covers."""
    root: str
    """Root of the tree over them, in hex."""
    closed: bool
    """Whether the writer ended here."""
    generation: int
    epoch: int
    """Which key signed."""
    history: str
    """Root of the tree over the lines of all checkpoints before this one."""
    timestamp: str
    next: str | None = None
    """In the last checkpoint of a generation, the root over the keys of the next."""

    def signed(self, key: KeyState) -> bytes:
        """The line, without a line end."""
        fields = {"v": _VERSION, "checkpoint": self.number}
        fields |= {name: value for name, value in self.__dict__.items() if name != "number"}
        content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        return content[:-1] + f',"signature":"{key.sign(content).hex()}"'.encode() + b"}"

    @classmethod
    def parse(cls, line: bytes) -> Checkpoint:
        """Read a line. The signature is not checked.

        Raises:
            ValueError: It is no checkpoint. The message says what is wrong with it.

        Example:
            >>> Checkpoint.parse(b"{}")
            Traceback (most recent call last):
            ValueError: not a signed checkpoint
        """
        content, _ = _split(line)
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError("not JSON") from error
        # Only one spelling of each checkpoint is accepted, so no two readers can understand it differently.
        if json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() != content:
            raise ValueError("not in canonical form")
        if not isinstance(fields, dict) or fields.keys() != _KEYS:
            raise ValueError("not the fields of a checkpoint")
        if type(fields["v"]) is not int or fields["v"] != _VERSION:
            raise ValueError(f"version {fields['v']!r:.40}, expected {_VERSION}")
        for name in ("checkpoint", "size", "generation", "epoch"):
            if type(fields[name]) is not int or not 0 <= fields[name] < _MAX_NUMBER:
                raise ValueError(f"'{name}' is no number that counts")
        for name, pattern in (("root", _HEX_64), ("history", _HEX_64), ("writer", _WRITER), ("log", _LOG)):
            if not isinstance(fields[name], str) or not pattern.fullmatch(fields[name]):
                raise ValueError(f"'{name}' has the wrong form")
        if fields["next"] is not None and not (isinstance(fields["next"], str) and _HEX_64.fullmatch(fields["next"])):
            raise ValueError("'next' has the wrong form")
        if type(fields["closed"]) is not bool or not isinstance(fields["timestamp"], str):
            raise ValueError("'closed' or 'timestamp' has the wrong form")
        del fields["v"]
        return cls(number=fields.pop("checkpoint"), **fields)

    @staticmethod
    def is_signed_by(line: bytes, key: bytes) -> bool:
        """Whether the signature of a line was made with this key."""
        content, signature = _split(line)
        return signature_fits(key, content, signature)


@dataclass(frozen=True)
class Identity:
    """What stays the same about a log, and may be known to everybody."""

    log: str
    """Its id, in hex."""
    root: str
    """Its public key: the root of the tree over the keys of the first generation, in hex."""
    epochs: int
    """How many keys a generation has."""

    def to_json(self) -> bytes:
        """The content of `log.json`."""
        return json.dumps({"v": _VERSION, **self.__dict__}, sort_keys=True).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> Identity:
        """Read `log.json`. It has one spelling, so that a change which says the same is seen too.

        Raises:
            ValueError: It is none.
        """
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError("not JSON") from error
        if not isinstance(fields, dict) or fields.keys() != {"v", "log", "root", "epochs"} or fields.pop("v") != 1:
            raise ValueError("not the identity of a log")
        for name, pattern in (("log", _LOG), ("root", _HEX_64)):
            if not isinstance(fields[name], str) or not pattern.fullmatch(fields[name]):
                raise ValueError(f"'{name}' has the wrong form")
        if type(fields["epochs"]) is not int or not 1 <= fields["epochs"] <= 1 << 20:
            raise ValueError("'epochs' is no number of keys")
        identity = cls(**fields)
        if identity.to_json() != content:
            raise ValueError("not spelt as it was written" + (AS_TEXT if b"\r" in content else ""))
        return identity


def key_file(generation: int) -> str:
    """Name of the file that holds the public keys of a generation."""
    return f"keys-{generation:06d}.pub"


def timestamp_of(seconds: float) -> str:
    """A time as it stands in records: RFC 3339, microseconds, UTC.

    Example:
        >>> timestamp_of(1.5)
        '1970-01-01T00:00:01.500000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def seconds_of(timestamp: str) -> float:
    """A time as it stands in records, in seconds since 1970; not a number where it is none.

    Example:
        >>> seconds_of("1970-01-01T00:00:01.500000Z"), seconds_of("yesterday")
        (1.5, nan)
    """
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError):
        return nan


def is_set_back(before: str, now: str) -> bool:
    """Whether a clock was set back between two lines that follow each other.

    Callers that write at the same moment may come in another order than they looked at the clock, so a second is none.

    Example:
        >>> is_set_back("2026-11-24T09:15:54.100000Z", "2026-11-24T09:15:54.000000Z")
        False
        >>> is_set_back("2026-11-24T09:15:54.100000Z", "2026-11-24T08:15:54.200000Z")
        True
    """
    if now >= before:
        return False
    try:
        return datetime.fromisoformat(before) - datetime.fromisoformat(now) > timedelta(seconds=1)
    except (ValueError, TypeError):
        return False  # no times that this package writes


def _split(line: bytes) -> tuple[bytes, bytes]:
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    found = _SIGNATURE.fullmatch(line)
    if found is None:
        raise ValueError("not a signed checkpoint")
    return found[1] + b"}", bytes.fromhex(found[2].decode())
