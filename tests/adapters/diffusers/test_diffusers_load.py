"""Models on disk in other shapes than one plain file for each component: opened as what they are, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apl_guard import Guard
from apl_guard.adapters.diffusers.load import load_pipe
from apl_guard.errors import ModelInvalid
from apl_guard.testing import random_prefix, tiny_pipe

TEXT = Path("text_encoder", "model.safetensors")
UNET = Path("unet", "diffusion_pytorch_model.safetensors")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    tiny_pipe().save_pretrained(tmp_path)
    return tmp_path


def _drop(file: Path, ending: str) -> str:
    """Take one weight out of a file, as if another program had written it."""
    weights = load_file(file)
    name = next(key for key in sorted(weights) if key.endswith(ending))
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    return name


def _name(folder: Path, component: str, names: object) -> None:
    """Have the index say that a component is something else."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {component: names}))


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "20KB"}], ids=str)
def test_variants_and_shards_hold_the_same_weights(tmp_path: Path, options) -> None:
    """A folder of fp16 files alone, as people download it, is opened as that; it was called damaged."""
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path, **options)
    opened = load_pipe(tmp_path)

    for part in ("text_encoder", "unet", "vae"):
        own, found = getattr(pipe, part).state_dict(), getattr(opened, part).state_dict()
        assert all(torch.equal(own[key], found[key]) for key in own), part


def test_a_component_may_be_plain_beside_a_variant(folder: Path) -> None:
    """As folders are from which the plain weights of the largest component were deleted."""
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")

    assert load_pipe(folder).unet.device.type == "cpu"


@pytest.mark.parametrize(("file", "ending"), [(UNET, "conv_out.weight"), (TEXT, "mlp.fc1.weight")], ids=str)
def test_a_weight_that_is_in_no_file_is_named(folder: Path, file: Path, ending: str) -> None:
    """The UNet's was an error about a device; the text encoder's was drawn at random, and a prefix learned on it."""
    _drop(folder / file, ending)

    with pytest.raises(ModelInvalid, match=rf"1 weights of '{file.parent}' are missing, such as .*{ending}"):
        load_pipe(folder)


def test_a_tokenizer_without_words_is_refused(folder: Path) -> None:
    """transformers makes one that reads every text as nothing, on which all names are hidden already."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):  # version 4 of transformers has the latter two
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(ModelInvalid, match="tokenizer: no vocabulary"):
        load_pipe(folder)

    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(ModelInvalid, match="tokenizer: no vocabulary"):
        load_pipe(folder)


def test_the_folder_of_a_modular_pipeline_is_said_to_be_one(tmp_path: Path) -> None:
    """It is whole, and it was called half-written; what to do is said."""
    (tmp_path / "modular_model_index.json").write_text("{}")

    with pytest.raises(ModelInvalid, match=r"a modular pipeline, .*; give the pipe itself in place of its folder"):
        load_pipe(tmp_path)


def test_weights_that_can_hold_code_are_refused_by_their_format(tmp_path: Path) -> None:
    """A folder of .bin files is not damaged, and getting it again would not help."""
    tiny_pipe().save_pretrained(tmp_path, safe_serialization=False)

    with pytest.raises(ModelInvalid, match=r"weights as \.bin.*expected \.safetensors"):
        load_pipe(tmp_path)


@pytest.mark.parametrize(
    ("component", "names"),
    [
        *(("unet", ["own", "Model"]), ("unet", ["own", ""]), ("unet", ["../own", "Model"])),
        *(("unet", "ab"), ("unet", {"../own": 1, "Model": 2}), ("_class_name", ["own", "Pipe"])),
    ],
    ids=str,
)
def test_code_that_a_folder_brings_is_not_run(folder: Path, component: str, names: object) -> None:
    """Older versions of diffusers run it unasked, in each of these spellings."""
    (folder / "_class_name").mkdir()
    for file in ("own.py", "unet/own.py", "unet/a.py", "_class_name/any.json"):
        (folder / file).write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    _name(folder, component, names)

    with pytest.raises(ModelInvalid, match=f"names code for '{component}'"):
        load_pipe(folder)
    assert not (folder / "ran").exists()


def test_a_component_is_no_pipeline_of_its_own(folder: Path) -> None:
    """Its index could name code, and components of its own."""
    shutil.copy(folder / "model_index.json", folder / "vae")
    _name(folder, "vae", ["diffusers", "DiffusionPipeline"])

    with pytest.raises(ModelInvalid, match="component 'vae' is a pipeline of its own"):
        load_pipe(folder)


def test_weights_that_are_no_numbers_are_a_typed_error(folder: Path) -> None:
    """A guard around such a model is refused, with a reason; it was an error of a library."""
    prefix = random_prefix(tiny_pipe(), n=2)
    weights = load_file(folder / TEXT)
    next(weight for key, weight in weights.items() if key.endswith("fc1.weight"))[0, 0] = float("nan")
    save_file(weights, folder / TEXT, {"format": "pt"})

    with pytest.raises(ModelInvalid, match="answers are not numbers"):
        Guard(load_pipe(folder), prefix=prefix)
