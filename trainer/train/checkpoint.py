"""The state of an unfinished run: all that the next step depends on, in one file that is whole or absent.

The draws of a step depend on its number alone (`data.examples.draw_batch`), so there is no random state to keep.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apl_guard.errors import InvalidInput
from apl_guard.storage import write_file
from apl_guard.trainer.config import TrainConfig

FILE_NAME = "checkpoint.safetensors"


@dataclass
class State:
    """What changes while a run goes on. N vectors of width D; M people."""

    vectors: Tensor
    """P, shape (N, D)."""
    exp_avg: Tensor
    """Adam's first moment, shape (N, D)."""
    exp_avg_sq: Tensor
    """Adam's second moment, shape (N, D)."""
    mean: Tensor
    """The running mean of P that is evaluated, shape (N, D)."""
    best: Tensor
    """The prefix of the best evaluation so far, shape (N, D)."""
    recent_loss: Tensor
    """The recent loss of each person, shape (M,); for drawing hard identities."""
    step: int = 0
    """Steps done."""
    best_step: int = -1
    best_score: float = float("-inf")
    seconds: float = 0.0
    """Time spent on the steps."""

    @classmethod
    def start(cls, vectors: Tensor, people: int) -> State:
        """The state before the first step."""
        zero = torch.zeros_like(vectors)
        return cls(
            vectors=vectors.clone(),
            exp_avg=zero.clone(),
            exp_avg_sq=zero.clone(),
            mean=vectors.clone(),
            best=vectors.clone(),
            recent_loss=torch.ones(people),
        )

    def pick(self, people: Tensor, config: TrainConfig) -> Tensor | None:
        """How likely each identity example is drawn, shape (M,), given whom each shows; None: all alike."""
        return self.recent_loss[people] ** config.hard_identities if config.hard_identities else None

    def saw(self, people: Tensor, losses: Tensor) -> None:
        """Take in what each example of a step lost, shape (B₁,), given whom each shows."""
        for person, loss in zip(people, losses, strict=True):
            self.recent_loss[person] = 0.9 * self.recent_loss[person] + 0.1 * loss


def save_state(folder: Path, state: State, binding: dict[str, Any]) -> None:
    """Write a checkpoint in place of the last one.

    Args:
        folder: Where; it exists.
        state: The state.
        binding: What the run depends on; `load_state` wants the same.

    Raises:
        StorageFailed: It cannot be written; the last checkpoint stays.
    """
    from safetensors.torch import save

    values = {f.name: getattr(state, f.name) for f in fields(state)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
    header = {"numbers": json.dumps(numbers), "binding": json.dumps(binding, sort_keys=True)}
    write_file(folder / FILE_NAME, save(tensors, header))


def load_state(folder: Path, binding: dict[str, Any]) -> State | None:
    """Read the checkpoint of an unfinished run, or None where there is none.

    Raises:
        InvalidInput: It is damaged, or the run was started with other options, another model or other data.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        found = json.loads(header["binding"])
        state = State(**tensors, **json.loads(header["numbers"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        msg = f"the checkpoint is damaged ({type(error).__name__}); delete it to start again"
        raise InvalidInput(msg, where=path) from error
    if found != json.loads(json.dumps(binding)):
        names = sorted(differences(found, binding))
        msg = (
            f"an unfinished run here differs in {', '.join(names)}; finish it with what it was started with, "
            "start again with --restart, or choose another output"
        )
        raise InvalidInput(msg, where=folder)
    return state


def forget(folder: Path) -> None:
    """Throw the state of a run away. The checkpoint goes first: without it nothing else counts, so a run that is killed
    in here begins anew, and does not go on without its history.
    """
    with suppress(OSError):
        (folder / FILE_NAME).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def differences(mine: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """The names in which two mappings differ.

    Example:
        >>> differences({"seed": 0, "config": {"lr": 0.1}}, {"seed": 0, "config": {"lr": 0.2}})
        ['config.lr']
    """
    names: list[str] = []
    for key in mine.keys() | other.keys():
        a, b = mine.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
