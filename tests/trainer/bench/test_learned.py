"""What a peer learned is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apl_guard.trainer.bench.learned import learn_once
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.peers.peer import Files, Task

GENERIC = tuple(f"a photo of a {thing}" for thing in ("cat", "car", "boat", "tree"))


@pytest.fixture(name="task", scope="module")
def _task(people: Identities) -> Task:
    return Task(people, GENERIC)


class Counting:
    """A peer that counts how often it learns."""

    key, source = "counting", ""

    def __init__(self, **options: Any) -> None:
        self.settings, self.times = options, 0

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        self.times += 1
        return {"a.bin": bytes(1000), "b.bin": str(sorted(self.settings.items())).encode()}

    def apply(self, pipe: Any, files: Files) -> Any:
        raise NotImplementedError


def test_a_peer_learns_once(pipe: Any, task: Task, tmp_path: Path) -> None:
    """The same again is read; other options, another task or a damaged file are learned anew."""
    peer, other_options = Counting(), Counting(lr=2)
    first = learn_once(peer, pipe, task, tmp_path)
    again = learn_once(peer, pipe, task, tmp_path)

    assert (peer.times, again) == (1, first)
    assert first.shipped == sum(len(content) for content in first.files.values())
    learn_once(other_options, pipe, task, tmp_path)
    assert other_options.times == 1
    learn_once(peer, pipe, task, tmp_path)
    assert peer.times == 2
    learn_once(peer, pipe, Task(task.people, GENERIC[:2]), tmp_path)
    assert peer.times == 3
    (tmp_path / "counting" / "a.bin").write_bytes(b"damaged")
    learn_once(peer, pipe, Task(task.people, GENERIC[:2]), tmp_path)
    assert peer.times == 4
