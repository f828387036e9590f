"""The row of checkpoints as a reader sees it: each signed by its own epoch's key, none missing, none exchanged."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apl_guard.audit.checkpoint import LOG_FILE, Checkpoint, Identity, is_set_back, key_file, seconds_of
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.seal_key import KEY_BYTES, key_root
from apl_guard.storage import read_regular

__all__ = ["Chain", "Sealed", "read_chain", "read_identity", "read_keys"]

_MAX_IDENTITY = 4096


@dataclass
class Sealed:
    """How far the records of one writer are sealed, in a few bytes for each checkpoint that covers more of them."""

    sizes: array[int] = field(default_factory=lambda: array("Q"))
    """How many records each checkpoint covers,"""
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    """its number,"""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    """when it was made, in seconds since 1970,"""
    roots: bytearray = field(default_factory=bytearray)
    """and the root of the tree over them, 32 bytes."""
    is_closed: bool = False

    @property
    def size(self) -> int:
        """How many records are sealed."""
        return self.sizes[-1] if self.sizes else 0

    def root(self, at: int) -> bytes:
        """The root under one of the checkpoints."""
        return bytes(self.roots[32 * at : 32 * at + 32])

    @property
    def newest_root(self) -> bytes:
        """The root over all that is sealed."""
        return self.root(len(self.sizes) - 1) if self.sizes else Tree().root

    def size_before(self, number: int) -> int:
        """How many records the checkpoints before one of this number seal."""
        at = bisect_left(self.numbers, number)
        return self.sizes[at - 1] if at else 0

    def add(self, checkpoint: Checkpoint) -> None:
        """Add the next checkpoint of this writer."""
        self.is_closed = checkpoint.closed
        if checkpoint.size > self.size:
            self.sizes.append(checkpoint.size)
            self.numbers.append(checkpoint.number)
            self.seconds.append(seconds_of(checkpoint.timestamp))
            self.roots += bytes.fromhex(checkpoint.root)


@dataclass
class Chain:
    """What the checkpoints say that hold, and what is wrong with the first that does not."""

    count: int = 0
    sealed: dict[str, Sealed] = field(default_factory=dict)
    """Of each writer."""
    newest: Checkpoint | None = None
    set_back: list[tuple[str, Checkpoint]] = field(default_factory=list)
    """Where the clock was set back: the time of a checkpoint, and the one after it."""
    problem: str | None = None

    def add(self, checkpoint: Checkpoint) -> None:
        """Add the next one that holds."""
        if self.newest is not None and is_set_back(self.newest.timestamp, checkpoint.timestamp):
            self.set_back.append((self.newest.timestamp, checkpoint))
        self.sealed.setdefault(checkpoint.writer, Sealed()).add(checkpoint)
        self.newest = checkpoint
        self.count += 1


def read_identity(folder: Path) -> Identity:
    """Read `log.json` of a log, or of its copy at a witness.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    return Identity.parse(read_regular(folder / LOG_FILE, _MAX_IDENTITY))


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


def read_chain(lines: Iterable[bytes], identity: Identity, keys_of: Callable[[int, str], list[bytes] | None]) -> Chain:
    """Check checkpoints one after the other, up to the first that does not hold.

    Every signature is checked, for those who seal go on from what they find in the file.

    Args:
        lines: The lines of the file.
        identity: What the log is known by.
        keys_of: Gives the public keys of a generation that have this root.
    """
    chain = Chain()
    history = Tree()
    keys, keys_generation = keys_of(0, identity.root), 0
    for number, line in enumerate(lines):
        try:
            checkpoint = Checkpoint.parse(line)
        except ValueError as error:
            chain.problem = f"checkpoint {number}: {error}"
            return chain
        last = chain.newest
        if last is not None and last.next is not None and checkpoint.generation == keys_generation + 1:
            keys_generation += 1
            keys = keys_of(keys_generation, last.next)
        before = chain.sealed.get(checkpoint.writer)
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
        elif before is not None and (before.is_closed or checkpoint.size < before.size):
            problem = "goes back behind what was sealed of its writer"
        elif before is not None and checkpoint.size == before.size and checkpoint.root != before.newest_root.hex():
            # Whoever has the live key could sign it, over records that were exchanged under the one before.
            problem = "says something else about records that were sealed before"
        if problem is not None:
            chain.problem = f"checkpoint {number} {problem}"
            return chain
        chain.add(checkpoint)
        history.append(leaf_hash(line))
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
