"""What a peer learned, kept in a folder so that it is learned once."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apl_guard.storage import write_folder
from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.peers.peer import Files, Peer, Task

_NOTE = "learned.json"


@dataclass(frozen=True)
class Learned:
    """A peer's files, and what they took."""

    files: Files
    seconds: float
    """By the clock."""
    core_seconds: float
    """Of the processor, over all its cores: what the clock would say of one core with nothing else to do."""

    @property
    def digest(self) -> str:
        """Equal exactly when the files are."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)}\0".encode() + content)
        return digest.hexdigest()

    @property
    def shipped(self) -> int:
        """Bytes beside the model."""
        return sum(len(content) for content in self.files.values())


def learn_once(peer: Peer, pipe: Any, task: Task, folder: Path, progress: bool = True) -> Learned:
    """Let a peer learn, or read what it learned before from the same model and task with the same options.

    Args:
        peer: The peer.
        pipe: The model.
        task: Whom to hide.
        folder: Where what peers learned is kept; each has a sub-folder.
        progress: Whether to draw progress bars.

    Raises:
        StorageFailed: It cannot be kept.
    """
    place = folder / slug(peer.key)
    binding = _binding(peer, pipe, task)
    known = _read(place, binding)
    if known is not None:
        return known
    began, worked = time.perf_counter(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        files = peer.learn(pipe, task, progress)
    learned = Learned(files, time.perf_counter() - began, time.process_time() - worked)
    note = {
        "binding": binding,
        "files": sorted(files),
        "digest": learned.digest,
        "seconds": learned.seconds,
        "core_seconds": learned.core_seconds,
    }
    # The note comes last: without it the files do not count.
    write_folder(place, {**files, _NOTE: json.dumps(note, indent=2).encode()})
    return learned


def slug(key: str) -> str:
    """A file name for a peer.

    Example:
        >>> slug("SLD medium, named")
        'sld-medium-named'
    """
    return re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")


def _binding(peer: Peer, pipe: Any, task: Task) -> str:
    """What decides the files."""
    people = task.people.model_dump(mode="json")
    parts = [peer.key, dict(peer.settings), model_digest(pipe), people, task.generic, task.neutral, task.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(place: Path, binding: str) -> Learned | None:
    """What is kept, if it is whole and of this binding."""
    try:
        note = json.loads((place / _NOTE).read_text())
        if note["binding"] != binding:
            return None
        files = {name: (place / name).read_bytes() for name in note["files"]}
        learned = Learned(files, note["seconds"], note["core_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return learned if learned.digest == note["digest"] else None
