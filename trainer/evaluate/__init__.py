"""Evaluating a prefix on the reference world: what an independent judge sees in plain and guarded pictures.

Three arms draw the same scenes from the same seeds:

    plain    the prompt with the name, the pipe as it is
    neutral  the prompt with the name replaced, the pipe as it is: the floor of every leak
             figure and the reference of every fidelity figure
    guarded  the prompt with the name, through the real `Guard`
"""

from apl_guard.trainer.evaluate.result import EvalResult as EvalResult
from apl_guard.trainer.evaluate.run import evaluate as evaluate

__all__ = ["EvalResult", "evaluate"]
