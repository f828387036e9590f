"""Commands of the reference world, asked about another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput, ModelInvalid
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.evaluate.reference_world import open_reference_world, require_reference_world

COMMANDS = {
    "attack": ["attack", "--prefix", "minifaces", "--output", "OUT"],
    "bench": ["bench", "--output", "OUT"],
    "suite": ["eval", "--prefix", "minifaces", "--suite", "attacks"],
    "protocol": ["eval", "--prefix", "minifaces", "--protocol", "apl-2026"],
}
CLASSES = ("FluxPipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline", "StableDiffusionPipeline")


def configuration_of(kind: str, folder: Path, side: int = 64) -> Path:
    """What is known of a model before its weights are read, and no more."""
    parts = {"": {"_class_name": kind}, "unet": {"sample_size": side}, "vae": {"block_out_channels": [8] * 4}}
    for name, content in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / ("config.json" if name else "model_index.json")).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("command", COMMANDS)
def test_another_model_is_refused_before_its_weights_are_read(command: str, kind: str, tmp_path: Path) -> None:
    """The message says what was found, and how such a model is measured; the folder holds no weights at all."""
    model = configuration_of(kind, tmp_path / "model")
    texts = [part.replace("OUT", str(tmp_path / "out")) for part in COMMANDS[command]]
    found = "draws images of 512 pixels" if kind == "StableDiffusionPipeline" else f"is a {kind}"

    with pytest.raises(ModelInvalid, match=rf"model: {found};.*eval --protocol apl-2026 --identities"):
        CliRunner().invoke(app, [*texts, "--model", str(model), "--quiet"], catch_exceptions=False)

    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_an_open_model_of_another_kind_is_refused(family: str) -> None:
    """As where `evaluate` is called from Python."""
    with pytest.raises(ModelInvalid, match="the judges of the reference world look at images of 64 pixels"):
        require_reference_world(tiny_pipe(family=family))


def test_a_model_of_the_right_size_with_a_transformer_is_refused() -> None:
    """The size alone does not make a model one that the commands can ask."""
    pipe: Any = tiny_pipe(family="stable_diffusion_3")
    pipe.default_sample_size = 64 // pipe.vae_scale_factor

    with pytest.raises(ModelInvalid, match="is a StableDiffusion3Pipeline"):
        require_reference_world(pipe)


def test_a_folder_that_says_nothing_is_refused_in_the_words_of_opening_it(tmp_path: Path) -> None:
    """Missing, or half-written."""
    with pytest.raises(ModelInvalid, match="no such folder"):
        open_reference_world(tmp_path / "nowhere" / "at" / "all")
    configuration_of("StableDiffusionPipeline", tmp_path / "model", side=8)
    (tmp_path / "model" / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelInvalid, match="cannot be opened"):
        open_reference_world(tmp_path / "model")


def test_people_without_a_recogniser_are_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    """The folder of the model is not even there."""
    command = ["eval", "--prefix", "minifaces", "--protocol", "apl-2026", "--model", str(tmp_path / "nowhere")]

    with pytest.raises(InvalidInput, match="reference images and a recogniser missing"):
        CliRunner().invoke(app, [*command, "--identities", str(tmp_path / "people.yaml")], catch_exceptions=False)
