"""What a training run gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from apl_guard.trainer.train.measure import Measurement


@dataclass(frozen=True)
class TrainResult:
    """What a run gave."""

    vectors: Tensor
    """The prefix that was kept, shape (N, D), float32; of several text encoders, side by side."""
    measurement: Measurement
    """Its evaluation on the held-aside examples."""
    step: int
    """The step it is from."""
    steps: int
    """Steps done in all."""
    seconds: float
    """Time spent on the steps."""
    folder: Path
    """The prefix folder that was written."""
