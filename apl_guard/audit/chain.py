"""The row of checkpoints as a reader sees it: each signed by its own epoch's key, none missing, none exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apl_guard.audit.checkpoint import Checkpoint, Identity, key_file, log_file
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.seal import KEY_BYTES, key_root
from apl_guard.audit.witness import CHECKPOINTS
from apl_guard.storage import read_regular

__all__ = ["Chain", "read_chain", "read_identity", "read_keys"]

_MAX_IDENTITY = 4096


@dataclass
class Chain:
    """The checkpoints that hold, and what is wrong with the first that does not."""

    lines: list[bytes] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    problem: str | None = None


def read_identity(folder: Path) -> Identity:
    """Read `log.json` of a log, or of its copy at a witness.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    return Identity.parse(read_regular(folder / log_file(), _MAX_IDENTITY))


def read_lines(folder: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of `checkpoints.jsonl`, and what follows the last of them.

    Raises:
        OSError: It cannot be read.
    """
    path = folder / CHECKPOINTS
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    return lines, rest


def read_keys(folders: Sequence[Path], generation: int, epochs: int, root: str) -> list[bytes] | None:
    """The public keys of a generation, from the first folder where they are whole.

    Raises:
        OSError: A file cannot be read.
    """
    for folder in folders:
        path = folder / key_file(generation)
        if not path.is_file() or path.stat().st_size != epochs * KEY_BYTES:
            continue
        content = path.read_bytes()
        keys = [content[at : at + KEY_BYTES] for at in range(0, len(content), KEY_BYTES)]
        if key_root(keys).hex() == root:
            return keys
    return None


def read_chain(lines: Sequence[bytes], identity: Identity, keys_of: Callable[[int, str], list[bytes] | None]) -> Chain:
    """Check checkpoints one after the other, up to the first that does not hold.

    Args:
        lines: The lines of the file.
        identity: What the log is known by.
        keys_of: Gives the public keys of a generation that have this root.
    """
    chain = Chain()
    history = Tree()
    keys, keys_generation, root = keys_of(0, identity.root), 0, identity.root
    sealed: dict[str, Checkpoint] = {}
    last: Checkpoint | None = None
    for number, line in enumerate(lines):
        try:
            checkpoint = Checkpoint.parse(line)
        except ValueError as error:
            chain.problem = f"checkpoint {number}: {error}"
            return chain
        if last is not None and last.next is not None and checkpoint.generation == keys_generation + 1:
            keys_generation, root = checkpoint.generation, last.next
            keys = keys_of(keys_generation, root)
        before = sealed.get(checkpoint.writer)
        problem = None
        if checkpoint.log != identity.log:
            problem = "belongs to another log"
        elif checkpoint.number != number:
            problem = f"says that it is number {checkpoint.number}"
        elif checkpoint.history != history.root.hex():
            problem = "does not follow the checkpoints before it"
        elif not _epoch_follows(last, checkpoint, identity.epochs):
            problem = f"is of epoch {checkpoint.generation}.{checkpoint.epoch}, which cannot follow the one before"
        elif keys is None:
            problem = f"the public keys of generation {checkpoint.generation} are missing or changed"
        elif not Checkpoint.is_signed_by(line, keys[checkpoint.epoch]):
            problem = f"is not signed with the key of epoch {checkpoint.generation}.{checkpoint.epoch}"
        elif before is not None and (before.closed or checkpoint.size < before.size):
            problem = "goes back behind what was sealed of its writer"
        elif before is not None and checkpoint.size == before.size and checkpoint.root != before.root:
            # Whoever has the live key could sign it, over records that were exchanged under the one before.
            problem = "says something else about records that were sealed before"
        if problem is not None:
            chain.problem = f"checkpoint {number} {problem}"
            return chain
        sealed[checkpoint.writer] = last = checkpoint
        history.append(leaf_hash(line))
        chain.lines.append(line)
        chain.checkpoints.append(checkpoint)
    return chain


def _epoch_follows(last: Checkpoint | None, checkpoint: Checkpoint, epochs: int) -> bool:
    """Epochs are counted without a gap: who has only a later key cannot begin earlier."""
    here = (checkpoint.generation, checkpoint.epoch)
    if checkpoint.epoch >= epochs or (checkpoint.next is not None and checkpoint.epoch != epochs - 1):
        return False
    if last is None:
        return here == (0, 0)
    if last.next is not None:
        return here == (last.generation + 1, 0)
    return here in {(last.generation, last.epoch), (last.generation, last.epoch + 1)}
