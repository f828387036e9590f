"""What a prefix is trained on: files of people, prompts and pictures, and what is wrong with them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from names_and_prompts import GENERIC, NAMES
from PIL import Image

from apl_guard.errors import IdentitiesInvalid, InvalidInput, ModelInvalid
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import draw_batch, prepare
from apl_guard.trainer.data.generation import cache_folder
from apl_guard.trainer.data.identities import Identities, load_identities
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.train import train
from apl_guard.trainer.train.targets import Targets

ENTRY = "- name: Ada Lum\n    neutral: {coarse: a woman}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("identities: []\n", "identities"),
        ("people: []\n", "unknown key 'people'|'identities' is missing; expected a list of people"),
        ("identities:\n", "'identities' is empty; expected a list of people"),
        ("", r"found nothing; expected identities: \[\{name: "),
        ("identities: [Ada Lum, Bo Lum]\n", r"'entry 1' is a text; expected \{name: "),
        ("identities:\n  - {name: Ada Lum}\n", r"entry 1: 'neutral' is missing; expected \{coarse: a woman\}"),
        (
            f"identities:\n  {ENTRY}  - {{name: Bo, neutral: a man}}\n",
            "entry 2: 'neutral' is a text",
        ),
        (f"identities:\n  {ENTRY.replace('coarse', 'corse')}", "entry 1: unknown key 'corse'; did you mean 'coarse'"),
        ("identities:\n  - {name: No, neutral: {coarse: a man}}\n", "entry 1: 'name' is true or false.*in quotes"),
        (f"identities:\n  {ENTRY}templates: a photo of {{name}}\n", "'templates' is a text; expected a list of texts"),
        (f"identities:\n  {ENTRY}templates: [1]\n", "'template 1' is a number; expected a text"),
        (f"identities:\n  {ENTRY}    age: 4\n", "entry 1: unknown key 'age'"),
        (f"identities:\n  {ENTRY}  {ENTRY}", r"entries \[1, 2\] have the same name"),
        (f"identities:\n  {ENTRY}templates: [a photo]\n", "template 1 has no {name}"),
        (f"identities:\n  {ENTRY}templates: []\n", "templates"),
        ("- Ada Lum\n", "found a list"),
        ("identities: [", "not valid YAML"),
        (f"identities:\n  {ENTRY}identities: []\n", "line 4: a key appears twice"),
        (f"identities:\n  {ENTRY}    name: Bo Lum\n", "line 4: a key appears twice"),
        (f"identities:\n  {ENTRY}  {ENTRY.replace('Ada', 'Ada ')}", r"entries \[1, 2\] have the same name"),
        (f"identities:\n  {ENTRY.replace('Ada Lum', repr(' '))}", "entry 1: 'name' begins or ends"),
        (f"identities:\n  {ENTRY.replace('a woman', repr(' '))}", "entry 1: 'coarse' is blank; expected a text"),
        (f"identities:\n  {ENTRY.replace('a woman', 'Ada Lum as a woman')}", "entry 1: 'neutral' holds the name"),
        ("identities: " + "[" * 5000, "nested too deeply"),
        ("identities: 2020-99-99", "a value cannot be read"),
    ],
)
def test_wrong_identities_are_named(content: str, message: str, tmp_path: Path) -> None:
    """Unknown keys, duplicates and empty lists are refused with the path and the key."""
    path = tmp_path / "people.yaml"
    path.write_text(content)

    with pytest.raises(IdentitiesInvalid, match=message) as caught:
        load_identities(path)

    assert caught.value.where == str(path)


def test_a_name_within_a_word_of_the_neutral_text_is_another_word() -> None:
    """Ada is not in Canada."""
    Identities.model_validate({"identities": [{"name": "ada", "neutral": {"coarse": "a woman from canada"}}]})


def test_a_neutral_text_that_is_missing_is_named(pipe: Any, config: TrainConfig, tmp_path: Path) -> None:
    """Training with attributes needs attributes."""
    people = Identities.model_validate({"identities": [{"name": "Ada Lum", "neutral": {"coarse": "a woman"}}]})
    changed = config.model_copy(update={"neutral": "attributes"})

    with pytest.raises(IdentitiesInvalid, match=r"entry 1 has no neutral\.attributes"):
        train(changed, pipe, people, GENERIC, tmp_path / "prefix", progress=False)


@pytest.mark.parametrize(("share", "described"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_share_of_the_people_keeps_all_attributes(
    pipe: Any, people: Identities, config: TrainConfig, share: float, described: int
) -> None:
    """Of eight people a quarter, half, or all are replaced by "a bald man" and not by "a man"."""
    options = {"attributes_share": share, "held_aside_identities": 0, "images_per_identity": 1}
    data = prepare(pipe, config.model_copy(update=options), people, GENERIC, progress=False)

    assert len(data.identity.neutrals) == 8
    assert sum("a bald man" in text for text in data.identity.neutrals) == described


@pytest.mark.parametrize("generic", [(), "empty.txt", "nowhere.txt", "folder"])
def test_generic_prompts_that_are_missing_are_an_error(
    generic: Any, pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """An empty list, an empty file, no file, and a folder without pictures are refused."""
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "folder").mkdir()
    given = tmp_path / generic if isinstance(generic, str) else generic

    with pytest.raises(InvalidInput, match=r"generic|empty\.txt|nowhere\.txt|folder"):
        train(config, pipe, people, given, tmp_path / "prefix", progress=False)


def test_a_model_folder_that_is_missing_or_cut_off_is_an_error(pipe: Any, tmp_path: Path) -> None:
    """No folder, no part, a weight file cut in the middle: each is refused with the path."""
    whole = tmp_path / "model"
    pipe.save_pretrained(whole)
    open_pipe(whole)

    with pytest.raises(ModelInvalid, match="nowhere"):
        open_pipe(tmp_path / "nowhere")
    for part in ("unet", "model_index.json"):
        broken = shutil.copytree(whole, tmp_path / f"without {part}")
        path = broken / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ModelInvalid, match="without"):
            open_pipe(broken)
    weights = whole / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelInvalid, match="model"):
        open_pipe(whole)


def test_a_hub_id_without_a_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, an id that is not in the cache is refused as a wrong model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ModelInvalid, match="nobody/nothing"):
        open_pipe("nobody/nothing")


def test_generated_latents_are_kept_and_made_once(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run reads what the first one drew; a damaged file is drawn again, to the same bits."""
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path))
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    digests, counts = [], []
    for turn in range(3):
        calls.clear()
        if turn == 2:
            next(cache_folder().iterdir()).write_bytes(b"cut off")
        digests.append(prepare(pipe, config, people, GENERIC, progress=False).digest)
        counts.append(len(calls))
    hook.remove()

    assert digests[0] == digests[1] == digests[2]
    assert counts[0] > 0 == counts[1] < counts[2] < counts[0]


def test_latents_of_another_size_are_drawn_anew(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sets a smaller `sample_size` to train with less memory does not get what was kept of the larger."""
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path))
    side = pipe.unet.config.sample_size
    sizes = []
    for size in (side, 2 * side):
        pipe.unet.register_to_config(sample_size=size)
        try:
            sizes.append(prepare(pipe, config, people, GENERIC, progress=False).generic.latents.shape[-1])
        finally:
            pipe.unet.register_to_config(sample_size=side)

    assert sizes == [side, 2 * side]


def test_own_pictures_take_the_place_of_generated_ones(pipe: Any, config: TrainConfig, tmp_path: Path) -> None:
    """Folders of a person and of things are encoded by the VAE; prompts come from captions."""
    for folder in ("ada", "things"):
        (tmp_path / folder).mkdir()
        for k in range(2):
            Image.new("RGB", (50, 40), (120 * k, 60, 200)).save(tmp_path / folder / f"{k}.png")
    (tmp_path / "ada" / "1.txt").write_text("Ada Lum in the rain")
    rows = [{"file_name": f"{k}.png", "text": f"thing {k}"} for k in range(2)]
    (tmp_path / "things" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "people.yaml").write_text(
        f"identities:\n  {ENTRY}    images: ada\ntemplates: ['a photo of {{name}}']\n"
    )

    data = prepare(pipe, config, load_identities(tmp_path / "people.yaml"), tmp_path / "things", progress=False)

    assert data.identity.prompts == ("a photo of Ada Lum", "Ada Lum in the rain")
    assert data.identity.neutrals == ("a photo of a woman", "a woman in the rain")
    assert sorted(data.generic.prompts) == ["thing 0", "thing 1"]
    side = pipe.unet.config.sample_size
    assert data.identity.latents.shape == (2, 4, side, side)
    assert not torch.equal(data.identity.latents[0], data.identity.latents[1])


def test_a_caption_without_the_name_is_an_error(pipe: Any, config: TrainConfig, tmp_path: Path) -> None:
    """Such a picture could not be made neutral. The message names its file, and does not hold the caption."""
    (tmp_path / "ada").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "ada" / "1.png")
    (tmp_path / "ada" / "1.txt").write_text("somebody secret")
    (tmp_path / "people.yaml").write_text(f"identities:\n  {ENTRY}    images: ada\n")

    with pytest.raises(IdentitiesInvalid, match=r"ada/1\.png: .*does not hold the name of entry 1") as caught:
        prepare(pipe, config, load_identities(tmp_path / "people.yaml"), GENERIC, progress=False)

    assert "secret" not in str(caught.value)


def test_what_is_held_aside_is_not_trained_on(pipe: Any, people: Identities, config: TrainConfig) -> None:
    """The people and prompts of the evaluation are not among those of training."""
    data = prepare(pipe, config, people, GENERIC, progress=False)

    assert set(data.held_identity.people.tolist()) == {6, 7}
    assert set(data.identity.people.tolist()) == set(range(6))
    assert not set(data.held_generic.prompts) & set(data.generic.prompts)
    assert data.names == NAMES


def test_a_batch_depends_on_its_number_alone(pipe: Any, people: Identities, config: TrainConfig) -> None:
    """Drawing other batches before does not change a batch, and two numbers give two batches."""
    data = prepare(pipe, config, people, GENERIC, progress=False)

    first = draw_batch(data, config, 7, 1000)
    torch.manual_seed(3)
    draw_batch(data, config, 8, 1000)
    again, other = draw_batch(data, config, 7, 1000), draw_batch(data, config, 8, 1000)

    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.identity, again.identity)
    assert not torch.equal(first.noise, other.noise)


def test_a_target_that_is_kept_is_the_one_that_was_computed(pipe: Any, people: Identities, config: TrainConfig) -> None:
    """The second call for a batch runs no UNet and gives the same bits."""
    data = prepare(pipe, config, people, GENERIC, progress=False)
    targets = Targets(pipe, data, config, keep=True)
    batch = draw_batch(data, config, 0, 1000)
    first = targets(batch, 0)
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))

    second = targets(batch, 0)
    hook.remove()

    assert not calls
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_pipeline_that_draws_from_pictures_is_refused(pipe: Any) -> None:
    """A UNet for inpainting takes a mask and a picture as well: said before anything is drawn."""
    other = copy.copy(pipe)
    other.unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)

    with pytest.raises(ModelInvalid, match="takes 9 channels, its images have 4"):
        open_pipe(other)
