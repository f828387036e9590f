"""The course of a run against its definitions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.train.schedule import half_weights, lr_factor, share_done


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
    ],
)
def test_the_learning_rate_falls_as_its_schedule_says(schedule: Any, expected: list[float]) -> None:
    """From all of it to nothing; the first steps have their share of that."""
    config = TrainConfig(schedule=schedule, warmup_steps=0)
    assert [lr_factor(config, 0, done) for done in (0, 0.25, 0.5, 1)] == pytest.approx(expected)

    config = TrainConfig(schedule=schedule, warmup_steps=4)
    for step, share in ((0, 0.25), (1, 0.5), (3, 1), (4, 1)):
        assert lr_factor(config, step, 0.25) == pytest.approx(share * expected[1])


def test_the_weights_of_both_halves_move_to_their_ends() -> None:
    """In proportion to what is done, and each shared by the examples of its half; without an end they stay."""
    config = TrainConfig(
        identity_batch=2,
        generic_batch=3,
        identity_weight=1,
        identity_weight_end=3,
        generic_weight=4,
        generic_weight_end=2,
    )
    for done, identity in ((0, 1), (0.5, 2), (1, 3)):
        expected = torch.tensor([identity / 5 / 2] * 2 + [(5 - identity) / 5 / 3] * 3)
        torch.testing.assert_close(half_weights(config, done), expected)

    staying = TrainConfig(
        identity_batch=1, generic_batch=1, identity_weight=1, generic_weight=3, generic_weight_end=None
    )
    torch.testing.assert_close(half_weights(staying, 1), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(("step", "seconds", "done"), [(0, 0, 0), (25, 60, 0.5), (75, 60, 0.75), (75, None, 0.75)])
def test_a_run_is_as_far_as_its_steps_or_its_time(step: int, seconds: float | None, done: float) -> None:
    """Of both, what runs out first."""
    config = TrainConfig(steps=100, time_limit_minutes=None if seconds is None else 2)
    state: Any = SimpleNamespace(step=step, seconds=seconds)

    assert share_done(config, state) == done
