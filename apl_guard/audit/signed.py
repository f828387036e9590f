"""Checkpoints as others can check them: found in the file of a log, each with its key and the way to the log's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_guard.audit.chain import read_identity, read_keys
from apl_guard.audit.checkpoint import Checkpoint, Identity
from apl_guard.audit.checkpoint_file import CheckpointFile
from apl_guard.audit.merkle import inclusion_proof, leaf_hash
from apl_guard.errors import InvalidInput

__all__ = ["Signed", "identity_of", "look_for", "parse_signed", "with_key"]


@dataclass(frozen=True)
class Signed:
    """A checkpoint and its line."""

    checkpoint: Checkpoint
    line: bytes


def identity_of(folder: Path) -> Identity:
    """The identity of a log.

    Raises:
        InvalidInput: The folder holds no log, or one whose identity is damaged.
        OSError: It cannot be read.
    """
    try:
        return read_identity(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInput("holds no audit log; expected log.json", where=folder) from error
    except ValueError as error:
        raise InvalidInput(f"its log.json is damaged ({error}); verify the log", where=folder) from error


def parse_signed(folder: Path, line: bytes) -> Signed:
    """Read a line. Its signature is not checked.

    Raises:
        InvalidInput: It is no checkpoint.
    """
    try:
        return Signed(Checkpoint.parse(line), line)
    except ValueError as error:
        raise InvalidInput(f"its checkpoints are damaged ({error}); verify the log", where=folder) from error


def look_for(
    folder: Path, file: CheckpointFile, records: Sequence[tuple[str, int]]
) -> tuple[dict[tuple[str, int], Signed], list[Signed]]:
    """The first checkpoint over each of some records, and the last of each generation of keys.

    Args:
        folder: The log.
        file: Its checkpoints.
        records: Writer and number of each.

    Raises:
        InvalidInput: One of those that matter is damaged.
    """
    covering: dict[tuple[str, int], Signed] = {}
    ends = []
    uncovered: dict[bytes, list[int]] = {}
    for writer, seq in sorted(records, reverse=True):
        uncovered.setdefault(writer.encode(), []).append(seq)
    for line in file:
        is_end = b'"next":null' not in line
        if not is_end and not any(writer in line for writer in uncovered):
            continue  # of the many lines of a log, few matter
        signed = parse_signed(folder, line)
        if is_end:
            ends.append(signed)
        writer, size = signed.checkpoint.writer, signed.checkpoint.size
        left = uncovered.get(writer.encode(), [])
        while left and left[-1] < size:
            covering[writer, left.pop()] = signed
        if not left:
            uncovered.pop(writer.encode(), None)
    return covering, ends


def with_key(folder: Path, identity: Identity, ends: list[Signed], signed: Signed) -> dict[str, Any]:
    """A checkpoint with its public key, and the way from there to the root of its generation, ready for JSON.

    Args:
        folder: The log.
        identity: Its identity.
        ends: The last checkpoints of its generations of keys.
        signed: The checkpoint.

    Raises:
        InvalidInput: The public keys are missing.
    """
    checkpoint = signed.checkpoint
    roots = [end.checkpoint.next for end in ends if end.checkpoint.number < checkpoint.number]
    root = roots[-1] if roots else identity.root
    keys = read_keys([folder], checkpoint.generation, identity.epochs, str(root))
    if keys is None or checkpoint.epoch >= len(keys):
        raise InvalidInput(f"the public keys of generation {checkpoint.generation} are missing; verify the log")
    path = inclusion_proof([leaf_hash(key) for key in keys], checkpoint.epoch)
    return {
        "line": signed.line.decode(),
        "key": keys[checkpoint.epoch].hex(),
        "path": [each.hex() for each in path],
    }
