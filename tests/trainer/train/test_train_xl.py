"""Training on a model with two text encoders: one prefix, with vectors for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from names_and_prompts import GENERIC
from short_runs import train_folder

from apl_guard import Guard
from apl_guard.prefix import Prefix
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.train import train
from apl_guard.trainer.train.plan import make_plan
from apl_guard.trainer.train.start import start_vectors


@pytest.fixture(name="xl", scope="module")
def _xl() -> Any:
    pipe = tiny_pipe(family="stable_diffusion_xl")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_both_text_encoders_get_vectors_that_learn_and_the_guard_takes_them(
    xl: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """The folder holds a prefix for both slots, which the guard puts in front of both; no weight has changed."""
    before = {name: weight.clone() for name, weight in xl.unet.state_dict().items()}
    last = config.model_copy(update={"keep": "last"})

    result = train(last, xl, people, GENERIC, tmp_path / "mine", progress=False)

    start = start_vectors(xl, last)
    prefix = Prefix.load(tmp_path / "mine")
    assert prefix.metadata.widths == {"text_encoder": 32, "text_encoder_2": 32}
    assert torch.equal(torch.cat([prefix.vectors[slot] for slot in prefix.metadata.widths], dim=1), result.vectors)
    for columns in (slice(0, 32), slice(32, 64)):
        assert not torch.equal(result.vectors[:, columns], start[:, columns])
    assert all(torch.equal(weight, before[name]) for name, weight in xl.unet.state_dict().items())
    outcome = Guard(xl, prefix=prefix).generate("a photo of Ada Lum", num_inference_steps=1).outcome
    assert (outcome.protection, outcome.slots_without_prefix) == ("applied", ())
    assert (tmp_path / "mine" / "before_and_after.png").stat().st_size > 1000
    assert "has the text encoders below" in (tmp_path / "mine" / "card.md").read_text()


def test_it_comes_nearer_to_the_neutral_prompt(
    xl: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """More steps close more of the gap on the people it is trained on, so both text encoders learn the right way."""
    longer = {"steps": 60, "lr": 3e-2, "held_aside_identities": 0, "eval_every": 60, "identity_weight": 1.0}
    config = config.model_copy(update=longer | {"generic_weight": 0.0, "generic_weight_end": 0.0, "keep": "last"})

    result = train(config, xl, people, GENERIC, tmp_path / "mine", progress=False)

    untrained = config.model_copy(update={"steps": 1, "lr": 1e-9, "warmup_steps": 0, "eval_every": 1})
    start = train(untrained, xl, people, GENERIC, tmp_path / "start", progress=False)
    assert result.measurement.gap_closed > start.measurement.gap_closed + 0.2


def test_attacks_in_the_loop_reach_both_text_encoders(
    xl: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """`adversarial` steps give another prefix for each of them."""
    plain, hardened = (
        train(
            config.model_copy(update={"adversarial": steps, "keep": "last"}),
            xl, people, GENERIC, tmp_path / str(steps), progress=False,
        ).vectors
        for steps in (0, 2)
    )  # fmt: skip
    for columns in (slice(0, 32), slice(32, 64)):
        assert not torch.equal(plain[:, columns], hardened[:, columns])


def test_the_plan_of_a_run_is_made_for_it_too(xl: Any, people: Identities, config: TrainConfig) -> None:
    """`--dry-run` times its passes."""
    plan = make_plan(config, xl, people, GENERIC)

    assert (plan.people, plan.steps) == (len(people.identities), config.steps)
    assert plan.seconds_steps > 0


def test_the_command_trains_it(xl: Any, tmp_path: Path) -> None:
    """`apl-guard train` takes the folder of such a model."""
    xl.save_pretrained(tmp_path / "model")

    prefix = train_folder(tmp_path / "model", tmp_path)

    assert set(prefix.vectors) == {"text_encoder", "text_encoder_2"}
