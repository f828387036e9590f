"""Training of prefixes, their evaluation, and the reference world to do both on.

    from apl_guard.trainer.config import TrainConfig
    from apl_guard.trainer.train import train

    result = train(TrainConfig(), "path/to/model", "people.yaml", None, "prefixes/mine")

The rooms, each of which imports from those below it only:

    bench, demo, suites    what is run from the command line: peers side by side, the whole idea, every suite by name
    attacks, personalise   who tries to undo a prefix; people whom somebody adds to the model later
    evaluate, peers        what judges see in guarded pictures; other ways to hide people
    train                  learning a prefix
    data                   people, prompts, pictures
    minifaces              the reference world
    model, report          one pass of a diffusion model; how pages and plots look
    config                 every option of training
    plain_yaml             YAML that people write

Nothing here is needed to guard a pipe; `import apl_guard` does not load it.
"""

# Outside the package this import fails, so `import trainer` cannot make a second copy of every class.
from ..errors import AplGuardError as AplGuardError
