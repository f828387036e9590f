"""A short training run, as a function and, so that it can be killed, as a program: `run_training.py FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from names_and_prompts import GENERIC, NAMES

from apl_guard.testing import tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.train import train


def run_to(folder: str | Path, seconds: float = 0.0) -> None:
    """Train into a folder; each pass of the UNet takes so much longer."""
    entries = [{"name": name, "neutral": {"coarse": "a man"}} for name in NAMES]
    config = TrainConfig(
        n_vectors=3,
        steps=12,
        identity_batch=2,
        generic_batch=2,
        images_per_identity=1,
        sampling_steps=1,
        eval_every=4,
        checkpoint_every=2,
        ema_decay=0.5,
        hard_identities=1.0,
    )
    pipe = tiny_pipe()
    pipe.unet.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    train(config, pipe, Identities.model_validate({"identities": entries}), GENERIC, folder, progress=False)


def main() -> None:
    try:
        run_to(sys.argv[1], seconds=0.1)  # time to be killed in
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
