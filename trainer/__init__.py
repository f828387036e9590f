"""Training of prefixes, their evaluation, and the reference world to do both on.

    from apl_guard.trainer.config import TrainConfig
    from apl_guard.trainer.train import train

    result = train(TrainConfig(), "path/to/model", "people.yaml", None, "prefixes/mine")

Nothing here is needed to guard a pipe; `import apl_guard` does not load it.
"""

# Outside the package this import fails, so `import trainer` cannot make a second copy of every class.
from ..errors import AplGuardError as AplGuardError
