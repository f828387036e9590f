"""The options: saved, loaded, compared, and refused where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from apl_guard.errors import ConfigInvalid
from apl_guard.trainer.config import TrainConfig


def test_saved_options_load_again(tmp_path: Path) -> None:
    """What was saved is what is loaded, digest and all."""
    config = TrainConfig(lr=1e-3, identity_weight_end=2.0, neutral="attributes", time_limit_minutes=3)

    (tmp_path / "config.yaml").write_bytes(config.to_bytes())

    assert TrainConfig.load(tmp_path / "config.yaml") == config
    assert TrainConfig.load(tmp_path / "config.yaml").digest == config.digest


def test_an_empty_file_stands_for_the_defaults(tmp_path: Path) -> None:
    """Options that a file does not name have their defaults."""
    (tmp_path / "config.yaml").write_text("")

    assert TrainConfig.load(tmp_path / "config.yaml") == TrainConfig()


def test_a_difference_names_the_options_that_differ() -> None:
    """Only what differs is in the difference, mine before the other's."""
    assert TrainConfig(seed=3, lr=0.5).diff(TrainConfig(lr=0.25)) == {"seed": (3, 0), "lr": (0.5, 0.25)}
    assert TrainConfig().diff(TrainConfig()) == {}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["step=3"], "unknown option 'step'; did you mean 'steps'"),
        (["steps"], "found 'steps'; expected key=value"),
        (["steps=0"], "option 'steps': .*greater than or equal to 1, found 0"),
        (["lr=fast"], "option 'lr': .*valid number.*found 'fast'"),
        (["neutral=none"], "option 'neutral'"),
        (["timestep_low=0.5", "timestep_high=0.5"], "^--set: timestep_low must be below timestep_high"),
        (["hard_identities=1", "reuse_batches=9"], "set one to 0"),
        (["identity_weight=0", "generic_weight=0"], "nothing to learn"),
        (["lr={"], "not valid YAML"),
        (["lr=" + "[" * 5000], "not valid YAML"),
        (["lr=2020-99-99"], "not valid YAML"),
        (["zzz=9"], "unknown option 'zzz'; `apl-guard train --help` lists the options"),
        (["start_words="], "option 'start_words': .*at least 1 character"),
        (["steps=yes"], "option 'steps': found True; expected a number"),
        (["lr=.inf"], "option 'lr': .*finite"),
        (["lr=1e300"], "option 'lr': .*less than or equal to 1000"),
        (["time_limit_minutes=.nan"], "option 'time_limit_minutes'"),
        (["seed=99999999999999999999"], "option 'seed': .*less than"),
    ],
)
def test_wrong_options_are_named(assignments: list[str], message: str) -> None:
    """The message names the option, what was found and what is possible."""
    with pytest.raises(ConfigInvalid, match=message):
        TrainConfig().with_overrides(assignments)


@pytest.mark.parametrize("words", ["anonymous , not the real person :", "not a: b", "No", "10", "person #1", "[a"])
def test_words_are_taken_as_they_stand(words: str) -> None:
    """The words that the reference world starts from end in a colon, of which YAML would make a mapping."""
    assert TrainConfig().with_overrides([f"start_words={words}"]).start_words == words


@pytest.mark.parametrize("content", ["- a\n", "steps: [", "steps: 3\nspeed: 9\n", "lr: 1\nlr: 2\n", "a: " + "[" * 5000])
def test_wrong_files_are_named(content: str, tmp_path: Path) -> None:
    """The message holds the path of the file."""
    (tmp_path / "config.yaml").write_text(content)

    with pytest.raises(ConfigInvalid, match=r"config\.yaml"):
        TrainConfig.load(tmp_path / "config.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is in the message."""
    with pytest.raises(ConfigInvalid, match=r"nowhere\.yaml"):
        TrainConfig.load(tmp_path / "nowhere.yaml")
