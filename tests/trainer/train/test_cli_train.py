"""`apl-guard train` from the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import ConfigInvalid, IdentitiesInvalid, InvalidInput, StorageFailed
from apl_guard.prefix import Prefix
from apl_guard.trainer.data.generation import cache_folder
from apl_guard.trainer.one_run import only_run
from apl_guard.trainer.train.measure import Measurement

SMALL = [
    "n_vectors=2", "steps=2", "identity_batch=2", "generic_batch=2", "images_per_identity=1",
    "generic_count=3", "sampling_steps=1", "precision=float32",
]  # fmt: skip


@pytest.fixture(name="arguments")
def _arguments(pipe: Any, tmp_path: Path) -> list[str]:
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "people.yaml").write_text("identities:\n  - name: Ada Lum\n    neutral: {coarse: a woman}\n")
    paths = ["--model", str(tmp_path / "model"), "--identities", str(tmp_path / "people.yaml")]
    options = [part for assignment in SMALL for part in ("--set", assignment)]
    return ["train", *paths, "--output", str(tmp_path / "prefix"), "--quiet", *options]


def test_a_dry_run_says_what_would_be_done(arguments: list[str], tmp_path: Path) -> None:
    """Steps, images, time and memory are told, and nothing is written."""
    answer = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)

    assert answer.exit_code == 0
    for text in ("steps       2 of 4 examples", "images      4 to generate", "memory", "GiB", "in all"):
        assert text in answer.output
    assert not (tmp_path / "prefix").exists()


def test_the_command_writes_a_prefix(arguments: list[str], tmp_path: Path) -> None:
    """A model folder, a file of people and the built-in generic prompts are enough."""
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)

    assert answer.exit_code == 0, answer.output
    assert "identity gap closed" in answer.output
    assert Prefix.load(tmp_path / "prefix").n == 2


def test_a_prefix_that_hides_nobody_is_not_passed_over_in_silence(arguments: list[str]) -> None:
    """Steps that are far too large end in a prefix that fits the model and does not do what it is for."""
    answer = CliRunner().invoke(app, [*arguments, "--set", "lr=100", "--set", "keep=last"], catch_exceptions=False)

    assert "identity gap closed -" in answer.stdout
    assert "it hides nobody. Do not register it" in answer.stderr


@pytest.mark.parametrize(("gap", "warns"), [(0.12, True), (0.85, False)])
def test_a_prefix_that_goes_less_than_half_of_the_way_is_told_from_one_that_does(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, gap: float, warns: bool
) -> None:
    """Only the run itself is stood in for, since how far a short one goes differs between machines."""
    result = SimpleNamespace(folder="mine", step=2, steps=2, measurement=Measurement(gap, 0.01))
    monkeypatch.setattr("apl_guard.trainer.train.train", lambda *_, **__: result)

    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)

    assert f"identity gap closed {100 * gap:.1f} %" in answer.stdout
    assert ("so people may be recognised. Before you register it, measure it" in answer.output) == warns


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_gpu_that_is_not_there_is_a_typed_error(arguments: list[str], more: tuple[str, ...]) -> None:
    """device=cuda on a machine without one is refused by name, planned or run."""
    with pytest.raises(ConfigInvalid, match="device: found no GPU"):
        CliRunner().invoke(app, [*arguments, "--set", "device=cuda", *more], catch_exceptions=False)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_more_denoising_steps_than_noise_levels_are_a_typed_error(arguments: list[str], more: tuple[str, ...]) -> None:
    """They are refused before anything is drawn, planned or run."""
    with pytest.raises(InvalidInput, match="sampling_steps: found 2000; expected at most 1000"):
        CliRunner().invoke(app, [*arguments, "--set", "sampling_steps=2000", *more], catch_exceptions=False)


def test_an_output_that_cannot_be_is_found_before_anything_is_drawn(arguments: list[str], tmp_path: Path) -> None:
    """A file in the place of the output folder is an error at once, and not after hours of making data."""
    (tmp_path / "prefix").write_text("a file")
    drawn = set(cache_folder().glob("*"))

    with pytest.raises(StorageFailed, match="prefix"):
        CliRunner().invoke(app, [*arguments, "--set", "seed=77"], catch_exceptions=False)

    assert set(cache_folder().glob("*")) == drawn


def test_quiet_silences_the_libraries_too(arguments: list[str]) -> None:
    """Without it, those below draw bars of their own while a model is loaded."""
    program = (
        "import json, sys\n"
        "from apl_guard.cli import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    app(arguments, standalone_mode=False)\n"
        "    print('and then', file=sys.stderr)\n"
    )
    quiet = [*arguments, "--dry-run"]
    loud = [argument for argument in quiet if argument != "--quiet"]
    # Into a pipe they draw none that takes seconds, unless somebody wishes it, and says so before they are imported.
    wishes = {"env": os.environ | {"TQDM_DELAY": "0"}, "capture_output": True, "text": True, "check": True}
    said = subprocess.run([sys.executable, "-c", program, json.dumps([loud, quiet])], **wishes).stderr.split("and then")

    assert ["Loading" in text for text in said] == [True, False, False]


def test_a_dry_run_refuses_what_a_run_would(arguments: list[str], tmp_path: Path) -> None:
    """A description that is missing, folders without pictures, and a caption without the name of the person are told
    before the data is made."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(IdentitiesInvalid, match=r"entry 1 has no neutral\.attributes"):
        CliRunner().invoke(app, [*arguments, "--dry-run", "--neutral", "attributes"], catch_exceptions=False)
    with pytest.raises(IdentitiesInvalid, match=r"has no neutral\.attributes; .*attributes_share=0"):
        CliRunner().invoke(app, [*arguments, "--dry-run", "--set", "attributes_share=1"], catch_exceptions=False)
    with pytest.raises(InvalidInput, match="no images with captions"):
        CliRunner().invoke(app, [*arguments, "--dry-run", "--generic", str(tmp_path / "empty")], catch_exceptions=False)
    with (tmp_path / "people.yaml").open("a") as file:
        file.write("    images: empty\n")
    with pytest.raises(IdentitiesInvalid, match="empty: no images in it"):
        CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "empty" / "1.png")
    (tmp_path / "empty" / "1.txt").write_text("somebody")
    # The run says it before it opens the model, and the plan as well.
    without_model = [*arguments[:2], "no/model", *arguments[3:]]
    for command in ([*arguments, "--dry-run"], without_model):
        with pytest.raises(IdentitiesInvalid, match="does not hold the name of entry"):
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_second_run_into_a_folder_is_refused(arguments: list[str], tmp_path: Path) -> None:
    """Even with --restart it takes nothing away from the first; when that is done, it may."""
    with only_run(tmp_path / "prefix"), pytest.raises(InvalidInput, match="prefix: another run writes into it"):
        CliRunner().invoke(app, [*arguments, "--restart"], catch_exceptions=False)

    assert not (tmp_path / "prefix").exists()
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0


def test_wrong_use_is_a_typed_error(arguments: list[str]) -> None:
    """A misspelt option and a missing file of people are refused by name."""
    with pytest.raises(ConfigInvalid, match="did you mean 'steps'"):
        CliRunner().invoke(app, [*arguments, "--set", "step=1"], catch_exceptions=False)
    without_people = [*arguments[:3], *arguments[5:]]
    with pytest.raises(InvalidInput, match="--identities"):
        CliRunner().invoke(app, without_people, catch_exceptions=False)
