"""The file of checkpoints: one row for the whole log, shared by all its writers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from apl_guard.audit import disk
from apl_guard.audit.checkpoint import LOG_FILE, Checkpoint, Identity, key_file, timestamp_of
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.seal_key import KEY_BYTES, KeyState, SealKey, key_root, public_keys
from apl_guard.audit.witness import CHECKPOINTS, Witness
from apl_guard.errors import AuditUnavailable
from apl_guard.storage import write_file

__all__ = ["EPOCH_SECONDS", "CheckpointLog"]

EPOCH_SECONDS = 600
_SUMMARY = "checkpoints.summary"
_SUMMARY_EVERY = 512


class CheckpointLog:
    """Adds checkpoints, and remembers how far each writer is sealed.

    Every method is called with the log's lock held, since several processes share the file.

    Args:
        folder: The folder of the log.
        seal_key: The file of the signing key.
        identity: The identity of the log.
        witnesses: Where checkpoints are copied to.
        epoch_seconds: How long a key is in use.
    """

    def __init__(
        self,
        folder: Path,
        seal_key: Path,
        identity: Identity,
        witnesses: Sequence[Witness] = (),
        epoch_seconds: float = EPOCH_SECONDS,
    ) -> None:
        self._folder = folder
        self._path = folder / CHECKPOINTS
        self._key = SealKey(seal_key)
        self._identity = identity
        self._witnesses = witnesses
        self._epoch_seconds = epoch_seconds
        self._history = Tree()
        self._offset = 0
        self._last: Checkpoint | None = None
        self._summarised = 0
        self.sealed: dict[str, int] = {}
        """Writer → how many of its records are sealed."""
        self.closed: set[str] = set()
        """Writers that have ended."""
        self._restore()

    def add(self, writer: str, tree: Tree, *, closed: bool = False) -> Checkpoint | None:
        """Seal what a writer has written, on disk and at every witness.

        Args:
            writer: Its id.
            tree: The tree over its records, all of which are on disk.
            closed: Whether it has ended.

        Returns:
            The checkpoint; None where the writer was closed by somebody else before.

        Raises:
            OSError: It is not on disk, or not at a witness. Where only a witness failed, the next call or
                `export` makes up for it.
            AuditUnavailable: The checkpoints or keys do not fit together.
        """
        self._check_is_the_same()
        self.refresh()
        if writer in self.closed:
            return None
        key = self._key_in_use()
        is_last = key.epoch == self._identity.epochs - 1 and self._is_over(key)
        checkpoint = Checkpoint(
            number=self._history.size,
            log=self._identity.log,
            writer=writer,
            size=tree.size,
            root=tree.root.hex(),
            closed=closed,
            generation=key.generation,
            epoch=key.epoch,
            history=self._history.root.hex(),
            timestamp=timestamp_of(time.time()),
            next=self._prepare_generation(key) if is_last else None,
        )
        if self._history.size - self._summarised >= _SUMMARY_EVERY:
            self.summarise()
        disk.append_through(self._path, checkpoint.signed(key) + b"\n")
        self.refresh()
        self.export()
        return checkpoint

    def check_key(self) -> None:
        """See to it that the next checkpoint can be signed, before there is a record that it should cover.

        Raises:
            OSError: The key cannot be read or changed.
            AuditUnavailable: It is missing, or not the one in use.
        """
        self._key_in_use()

    def export(self) -> None:
        """Bring every witness up to date.

        Raises:
            OSError: One cannot be written.
            AuditUnavailable: One holds something else.
        """
        last = self._last
        announced = 1 if last is None else last.generation + 1 + (last.next is not None)
        for witness in self._witnesses:
            witness.update(announced)

    def refresh(self) -> None:
        """Read what other processes have added.

        Raises:
            AuditUnavailable: The file is damaged.
        """
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < self._offset:
            raise AuditUnavailable(f"{self._path}: cut off while it was in use; verify the log before going on")
        if size == self._offset:
            return
        for line, end in self._lines():
            try:
                checkpoint = Checkpoint.parse(line)
            except ValueError as error:
                raise AuditUnavailable(
                    f"{self._path}: line {self._history.size + 1}: {error}; verify the log"
                ) from None
            if checkpoint.number != self._history.size or checkpoint.history != self._history.root.hex():
                raise AuditUnavailable(
                    f"{self._path}: checkpoint {checkpoint.number} does not follow the "
                    f"{self._history.size} before it; verify the log"
                )
            self._history.append(leaf_hash(line))
            self._offset = end
            self._last = checkpoint
            self.sealed[checkpoint.writer] = checkpoint.size
            if checkpoint.closed:
                self.closed.add(checkpoint.writer)

    def summarise(self) -> None:
        """Write down where the file stands, so that the next process need not read all of it. Never evidence.

        It counts only when a checkpoint follows that agrees with it.
        """
        fields = {
            "offset": self._offset,
            "size": self._history.size,
            "peaks": [peak.hex() for peak in self._history.peaks],
            "sealed": {writer: size for writer, size in self.sealed.items() if writer not in self.closed},
            "closed": sorted(self.closed),
        }
        write_file(self._folder / _SUMMARY, json.dumps(fields).encode())
        self._summarised = self._history.size

    def _check_is_the_same(self) -> None:
        """Refuse to seal where somebody removed the log meanwhile and began another: its key is at hand now.

        Raises:
            OSError: The identity is not there.
            AuditUnavailable: It is that of another log.
        """
        path = self._folder / LOG_FILE
        if path.read_bytes() != self._identity.to_json():
            raise AuditUnavailable(f"{path}: is no longer that of log {self._identity.log}; start the service anew")

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        """New lines, each with the offset of its end."""
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            at = self._offset
            for line in stream:
                if not line.endswith(b"\n"):
                    self._set_aside(line, at)
                    return
                at += len(line)
                yield line[:-1], at

    def _set_aside(self, torn: bytes, at: int) -> None:
        """Keep the half of a checkpoint that a process left when it died. Nobody has seen it yet."""
        name = f"torn-{self._history.size:09d}-{os.urandom(4).hex()}"
        disk.append_through(self._folder / name, torn)
        os.truncate(self._path, at)

    def _restore(self) -> None:
        """Begin where a summary ends, if the checkpoint after it agrees."""
        try:
            fields = json.loads((self._folder / _SUMMARY).read_bytes())
            offset, tree = int(fields["offset"]), Tree(fields["size"], map(bytes.fromhex, fields["peaks"]))
            with self._path.open("rb") as stream:
                stream.seek(offset)
                following = Checkpoint.parse(stream.readline()[:-1])
            if (following.number, following.history) != (tree.size, tree.root.hex()):
                return
            sealed = {str(writer): int(size) for writer, size in fields["sealed"].items()}
            closed = set(map(str, fields["closed"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        self._offset, self._history, self._summarised = offset, tree, tree.size
        self.sealed, self.closed = sealed, closed

    def _is_over(self, key: KeyState) -> bool:
        # A clock that jumps costs an epoch; it cannot keep a key alive.
        return not 0 <= time.time() - key.started < self._epoch_seconds

    def _key_in_use(self) -> KeyState:
        """The key for the next checkpoint. Older ones are destroyed first."""
        states = self._key.read()
        last = self._last
        if last is not None and last.next is None:
            # What was prepared and never announced does not count.
            states = [state for state in states if state.generation == last.generation] or states
        key = states[-1]
        if last is not None and (key.generation, key.epoch) < (last.generation, last.epoch):
            raise AuditUnavailable(
                f"the signing key is of epoch {key.generation}.{key.epoch}, the last checkpoint of "
                f"{last.generation}.{last.epoch}: it was put back from a copy; start a log in a new folder"
            )
        if last is None:
            newest, may_be = "there is no checkpoint", (0, 0)
        else:
            newest = f"the last checkpoint of {last.generation}.{last.epoch}"
            may_be = (last.generation + 1, 0) if last.next is not None else (last.generation, last.epoch + 1)
        if (key.generation, key.epoch) > may_be:
            raise AuditUnavailable(
                f"the signing key is of epoch {key.generation}.{key.epoch}, {newest}: checkpoints are missing; verify "
                "the log"
            )
        if not self._is_ours(key):
            raise AuditUnavailable("the signing key is of another log; put its own back, or start one in a new folder")
        is_used = last is not None and (key.generation, key.epoch) == (last.generation, last.epoch)
        if is_used and self._is_over(key) and key.epoch < self._identity.epochs - 1:
            key = key.following(int(time.time()))
            self._key.write(key)
            states.append(key)
        if len(states) > 1 or len(self._key.read()) > 1 or self._key.is_unsure:
            self._key.keep_only(key)
        return key

    def _is_ours(self, key: KeyState) -> bool:
        """Whether what this key signs can be verified."""
        path = self._folder / key_file(key.generation)
        if not path.exists():
            raise AuditUnavailable(f"{path}: the public keys are missing; put them back from a witness")
        with path.open("rb") as stream:
            stream.seek(key.epoch * KEY_BYTES)
            return stream.read(KEY_BYTES) == key.public_key

    def _prepare_generation(self, key: KeyState) -> str:
        """Make the keys of the next generation. They count when the last key of this one has signed their root."""
        state = KeyState(key.generation + 1, 0, int(time.time()), os.urandom(KEY_BYTES))
        keys = public_keys(state.seed, self._identity.epochs)
        write_file(self._folder / key_file(state.generation), b"".join(keys))
        self._key.write(state)
        return key_root(keys).hex()
