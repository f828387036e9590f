"""The model that is trained on or judged: opened, held still, and asked for one pass."""

from apl_guard.trainer.model.pipeline import open_pipe as open_pipe

__all__ = ["open_pipe"]
