"""A receipt: the records about one decision, with all that it takes to check them far from the log.

Whoever has the log's public key, 32 bytes, can check a receipt offline. `docs/audit-format.md` says how, in steps that
need only SHA-256 and Ed25519.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.checkpoint_file import CheckpointFile
from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.merkle import (
    consistency_proof,
    inclusion_proofs,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from apl_guard.audit.reading import find_decision, is_about
from apl_guard.audit.record import Record
from apl_guard.audit.row import Row
from apl_guard.audit.segment_files import writers_in
from apl_guard.audit.signed import Signed, identity_of, look_for, parse_signed, with_key
from apl_guard.errors import InvalidInput

__all__ = ["MAX_BYTES", "check_receipt", "missing_at", "prove", "prove_consistency"]

_KIND = "apl-guard audit receipt 1"
MAX_BYTES = 16 << 20


def prove(folder: Path, decision_id: str) -> dict[str, Any]:
    """Make the receipt for a decision.

    Args:
        folder: The log.
        decision_id: The decision.

    Returns:
        The receipt, ready for JSON.

    Raises:
        InvalidInput: There is no such decision, no checkpoint covers it yet, or the log does not prove it.
        OSError: A file cannot be read.
    """
    identity = identity_of(folder)
    records = find_decision(folder, decision_id)
    places_of = [(found.record.writer, found.record.seq) for found in records]
    covering, ends = look_for(folder, CheckpointFile.look_at(folder), places_of)
    receipt: dict[str, Any] = {
        "kind": _KIND,
        "decision_id": decision_id,
        "log": identity.log,
        "public_key": identity.root,
        "epochs": identity.epochs,
        "generations": [],
        "checkpoints": [],
        "records": [],
    }
    places: dict[int, int] = {}
    newest = 0
    for writer, seq in places_of:
        signed = covering.get((writer, seq))
        if signed is None:
            raise InvalidInput(
                f"record {seq} of {writer} is not under a checkpoint yet; a running guard makes one within a second",
                where=folder,
            )
        checkpoint = signed.checkpoint
        if checkpoint.number not in places:
            places[checkpoint.number] = len(receipt["checkpoints"])
            receipt["checkpoints"].append(with_key(folder, identity, ends, signed))
        newest = max(newest, checkpoint.generation)
    try:
        proofs = _proofs(folder, covering)
    except ValueError as error:
        raise _does_not_prove(folder, error) from error
    for found, place in zip(records, places_of, strict=True):
        receipt["records"].append(
            {
                "line": found.line.content.decode(),
                "checkpoint": places[covering[place].checkpoint.number],
                "proof": [each.hex() for each in proofs[place]],
            }
        )
    receipt["generations"] = [
        with_key(folder, identity, ends, end) for end in ends if end.checkpoint.generation < newest
    ]
    try:
        check_receipt(receipt, identity.root)
    except InvalidInput as error:
        raise _does_not_prove(folder, error) from error
    return receipt


def _proofs(folder: Path, covering: Mapping[tuple[str, int], Signed]) -> dict[tuple[str, int], list[bytes]]:
    """The way of each record to the root that its checkpoint signs, from one look at the records of each writer.

    Raises:
        ValueError: Records are missing.
    """
    found: dict[tuple[str, int], list[bytes]] = {}
    for writer in {writer for writer, _ in covering}:
        sizes = {seq: signed.checkpoint.size for (of, seq), signed in covering.items() if of == writer}
        proofs = inclusion_proofs(_leaves(folder, writer), sizes.items())
        found |= {(writer, seq): proof for seq, proof in zip(sizes, proofs, strict=True)}
    return found


def _leaves(folder: Path, writer: str) -> Iterator[bytes]:
    segments = folder / SEGMENTS
    return (line.leaf for line in Row(segments, writer, writers_in(segments).get(writer, [])))


def _does_not_prove(folder: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"does not prove it ({error}); see: apl-guard audit verify {folder}", where=folder)


def check_receipt(content: bytes | Mapping[str, Any], public_key: str) -> list[Record]:
    """Check a receipt.

    Args:
        content: The receipt.
        public_key: The log's public key in hex, from somebody to be trusted.

    Returns:
        The records that it proves.

    Raises:
        InvalidInput: It proves nothing. The message says why.
    """
    try:
        return _check(content, public_key)
    except InvalidInput:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InvalidInput("is none that `apl-guard audit prove` wrote", where="receipt") from error


def missing_at(content: bytes, witnesses: Sequence[Path]) -> list[str]:
    """Hold a receipt that was checked against what witnesses keep of its log.

    Whoever has the log's key can sign a receipt for what was never in the log that others know.

    Args:
        content: The receipt.
        witnesses: Folders that received the log's checkpoints.

    Returns:
        Of which checkpoints which witness holds nothing, be it not yet.

    Raises:
        InvalidInput: One holds another checkpoint in the place of one of the receipt.
        OSError: A witness cannot be read.
    """
    receipt = json.loads(content)
    signed = [each["line"].encode() for each in (*receipt["generations"], *receipt["checkpoints"])]
    missing = []
    for witness in witnesses:
        wanted = {Checkpoint.parse(line).number: line for line in signed}
        for number, line in enumerate(CheckpointFile.look_at(witness / receipt["log"])):
            if wanted.pop(number, line) != line:
                raise InvalidInput(f"checkpoint {number} differs from the witness {witness}", where="receipt")
        missing += [f"{witness} does not hold checkpoint {number}" for number in wanted]
    return missing


def prove_consistency(folder: Path, first: int, second: int) -> dict[str, Any]:
    """Show that a later checkpoint continues an earlier one, and check it.

    Args:
        folder: The log.
        first: Number of the earlier checkpoint.
        second: Number of the later one.

    Returns:
        Both checkpoints and the proofs, ready for JSON: that the later one's history contains the earlier, and
        where both are of one writer, that the later one's records begin with the earlier one's.

    Raises:
        InvalidInput: There are no such checkpoints, or the later does not continue the earlier.
        OSError: A file cannot be read.
    """
    identity = identity_of(folder)
    file = CheckpointFile.look_at(folder)
    count = file.count()
    if not 0 <= first < second < count:
        raise InvalidInput(
            f"checkpoints {first} and {second}; expected two of 0 to {count - 1}, the earlier first", where=folder
        )
    lines = {number: line for number, line in enumerate(islice(file, second + 1)) if number in (first, second)}
    (_, ends), signed = look_for(folder, file, []), [parse_signed(folder, lines[number]) for number in (first, second)]
    early, late = (each.checkpoint for each in signed)
    try:
        _check_all_signed(
            [with_key(folder, identity, ends, end) for end in ends if end.checkpoint.generation < late.generation],
            [with_key(folder, identity, ends, each) for each in signed],
            *(identity.root, identity.log, identity.epochs),
        )
    except (InvalidInput, IndexError) as error:
        raise InvalidInput(f"does not prove it ({error}); verify the log", where=folder) from error
    (proof,) = inclusion_proofs(map(leaf_hash, file), [(first, second)])
    if not verify_inclusion(leaf_hash(lines[first]), first, second, proof, bytes.fromhex(late.history)):
        raise InvalidInput(f"checkpoint {second} does not continue checkpoint {first}", where=folder)
    result: dict[str, Any] = {
        "first": lines[first].decode(),
        "second": lines[second].decode(),
        "history": [each.hex() for each in proof],
        "records": None,
    }
    if early.writer == late.writer and early.size:
        steps: list[bytes] = []
        with suppress(ValueError):  # records are missing
            steps = consistency_proof(_leaves(folder, late.writer), early.size, late.size)
        roots = bytes.fromhex(early.root), bytes.fromhex(late.root)
        if not verify_consistency(early.size, late.size, steps, *roots):
            raise InvalidInput(
                f"the records under checkpoint {second} do not begin with those under checkpoint {first}", where=folder
            )
        result["records"] = [each.hex() for each in steps]
    return result


def _check(content: bytes | Mapping[str, Any], public_key: str) -> list[Record]:
    if isinstance(content, bytes):
        if len(content) > MAX_BYTES:
            raise InvalidInput(f"larger than {MAX_BYTES} bytes", where="receipt")
        content = json.loads(content)
    if not isinstance(content, Mapping):
        raise TypeError
    if content["kind"] != _KIND:
        raise InvalidInput(f"is not '{_KIND}'", where="receipt")
    log, epochs = content["log"], content["epochs"]
    if type(epochs) is not int:
        raise ValueError
    checkpoints = _check_all_signed(content["generations"], content["checkpoints"], public_key, log, epochs)
    records = []
    for each in content["records"]:
        line = each["line"].encode("ascii")
        record, checkpoint = Record.parse(line), checkpoints[each["checkpoint"]]
        proof = [bytes.fromhex(step) for step in each["proof"]]
        root = bytes.fromhex(checkpoint.root)
        if record.writer != checkpoint.writer or not verify_inclusion(
            leaf_hash(line), record.seq, checkpoint.size, proof, root
        ):
            raise InvalidInput(f"record {record.seq} is not under its checkpoint", where="receipt")
        if not is_about(record, content["decision_id"]):
            raise InvalidInput(f"record {record.seq} is about something else", where="receipt")
        records.append(record)
    if not records:
        raise InvalidInput("holds no records", where="receipt")
    return records


def _check_all_signed(
    generations: Sequence[Mapping[str, Any]], signed: Sequence[Mapping[str, Any]], root: str, log: str, epochs: int
) -> list[Checkpoint]:
    """Checkpoints, each signed by the key of its epoch, and the generations of keys up to there."""
    roots = [root]
    for end in generations:
        checkpoint = _check_signed(end, roots, log, epochs)
        if checkpoint.generation != len(roots) - 1 or checkpoint.next is None or checkpoint.epoch != epochs - 1:
            raise InvalidInput("a generation of keys is not announced by the last of the one before", where="receipt")
        roots.append(checkpoint.next)
    return [_check_signed(each, roots, log, epochs) for each in signed]


def _check_signed(signed: Mapping[str, Any], roots: list[str], log: str, epochs: int) -> Checkpoint:
    line, key = signed["line"].encode("ascii"), bytes.fromhex(signed["key"])
    checkpoint = Checkpoint.parse(line)
    path = [bytes.fromhex(step) for step in signed["path"]]
    if checkpoint.log != log:
        raise InvalidInput(f"checkpoint {checkpoint.number} is of another log", where="receipt")
    root = bytes.fromhex(roots[checkpoint.generation])
    if not verify_inclusion(leaf_hash(key), checkpoint.epoch, epochs, path, root):
        raise InvalidInput(f"the key of checkpoint {checkpoint.number} does not belong to the log", where="receipt")
    if not Checkpoint.is_signed_by(line, key):
        raise InvalidInput(f"the signature of checkpoint {checkpoint.number} does not fit", where="receipt")
    return checkpoint
