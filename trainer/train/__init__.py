"""Training a prefix. `run` reads from top to bottom, `loss` has the equations."""

from apl_guard.trainer.train.result import TrainResult as TrainResult
from apl_guard.trainer.train.run import train as train

__all__ = ["TrainResult", "train"]
