"""The models of the reference world: tokenizer, patch code, judges, and the build from nothing."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.weights import weights_of
from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.trainer import minifaces
from apl_guard.trainer.minifaces.autoencoder import PatchCode, to_tensor
from apl_guard.trainer.minifaces.build import Build
from apl_guard.trainer.minifaces.captions import caption
from apl_guard.trainer.minifaces.dataset import Images, draw_all
from apl_guard.trainer.minifaces.judge import (
    READS,
    Gallery,
    GuardRecogniser,
    Reader,
    Recogniser,
    load_guard_recogniser,
    load_judges,
    save_judges,
)
from apl_guard.trainer.minifaces.judge_training import broken
from apl_guard.trainer.minifaces.pictures import random_picture
from apl_guard.trainer.minifaces.recipe import Recipe
from apl_guard.trainer.minifaces.shipped import save_model, write_identities
from apl_guard.trainer.minifaces.text_encoder import WIDTH, Reading
from apl_guard.trainer.minifaces.tokenizer import MERGES, train_tokenizer
from apl_guard.trainer.minifaces.training import fit
from apl_guard.trainer.minifaces.traits import GEOMETRY
from apl_guard.trainer.minifaces.variants import VariantRecipe, build_variant, fine_tuned
from apl_guard.trainer.minifaces.whole import whole, write_torch
from apl_guard.trainer.model.pipeline import model_digest, open_pipe


@pytest.fixture(name="images", scope="module")
def _images() -> Images:
    rng = random.Random(0)
    return draw_all([random_picture(rng) for _ in range(240)], seed=0)


def test_patch_code_is_orthonormal_and_keeps_most_of_a_picture(images: Images) -> None:
    """Decoding linearly leaves under a tenth of the variance unexplained; the components are orthonormal."""
    code = PatchCode.of(images)
    eye = code.components @ code.components.T
    assert torch.allclose(eye, torch.eye(len(eye)), atol=1e-4)
    z = code.encode(images)
    assert z.shape == (len(images), 24, 8, 8)
    assert float(z.square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)
    patches = torch.nn.functional.pixel_unshuffle(to_tensor(images), 8).permute(0, 2, 3, 1)
    rebuilt = (z.permute(0, 2, 3, 1) * code.scale) @ code.components + code.mean
    assert float((rebuilt - patches).square().sum() / (patches - code.mean).square().sum()) < 0.1


def test_tokenizer_speaks_every_byte_and_truncates_as_clip_does() -> None:
    """Any text can be tokenised and comes back; 77 ids begin with the start and end with the end token."""
    rng = random.Random(1)
    tokenizer = train_tokenizer([caption(random_picture(rng), rng) for _ in range(500)], merges=100)
    for text in ("a photo of zoë", "日本", "🙂 smile"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    ids = tokenizer("word " * 200, truncation=True, max_length=77)["input_ids"]
    assert len(ids) == 77
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_judges_survive_a_file(tmp_path: Path, images: Images) -> None:
    """Judges read back from their file answer as before, up to half precision."""
    torch.manual_seed(0)
    judge, guard, reader = Recogniser().eval(), GuardRecogniser().eval(), Reader().eval()
    gallery = Gallery(("a", "b"), torch.nn.functional.normalize(torch.randn(2, GEOMETRY), dim=-1))
    path = tmp_path / "judges.safetensors"
    save_judges(path, judge, guard, reader, gallery, {"far_1e-3": 0.5})
    loaded = load_judges(path)
    assert loaded.thresholds == {"far_1e-3": 0.5}
    assert loaded.gallery.names == ("a", "b")
    with torch.no_grad():
        assert torch.allclose(loaded.embed(images[:8]), judge(to_tensor(images[:8])), atol=1e-2)
        assert load_guard_recogniser(path)(to_tensor(images[:8])).shape == (8, GEOMETRY)


def test_reading_learns_which_of_two_colours_is_the_shirts() -> None:
    """From states that hold a colour at two places, attention reads each answer at its own place, geometry included."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    reading, key = Reading(), list(READS).index("clothing")
    shapes = torch.randn(8, WIDTH, generator=generator)
    places = torch.randn(2, WIDTH, generator=generator)
    optimizer = torch.optim.Adam(reading.parameters(), 1e-2)
    for _ in range(60):
        colours = torch.randint(8, (64, 2), generator=generator)
        states = shapes[colours] + places  # (b, 2, WIDTH): shirt, background
        labels = torch.full((64, len(READS)), -1)
        labels[:, key], labels[:, key + 1] = colours[:, 0], colours[:, 1]
        geometry = (colours[:, :1] / 7).expand(-1, GEOMETRY).clone()
        geometry[::2] = float("nan")
        loss, unread = reading.loss(states, labels, geometry)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = reading(states)
    assert float((answers[key].argmax(1) == colours[:, 0]).float().mean()) > 0.95
    assert float((answers[key + 1].argmax(1) == colours[:, 1]).float().mean()) > 0.95
    assert unread.keys() == {"clothing", "background"}
    assert max(unread.values()) < 0.2
    assert torch.isfinite(loss)
    assert float((answers[-1].detach() - colours[:, :1] / 7).abs().mean()) < 0.1


def test_broken_faces_are_not_the_faces_they_were(images: Images) -> None:
    """What teaches the reader "no face" differs from each picture by a lot."""
    before = torch.from_numpy(images[:16])
    after = broken(before, torch.Generator().manual_seed(0))
    assert after.shape == before.shape
    assert float((after.float() - before.float()).abs().mean(dim=(1, 2, 3)).min()) > 10


def test_a_build_runs_from_nothing_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The tiny recipe makes a folder that diffusers opens; a second call with a stage removed makes only that stage."""
    build = Build(tmp_path, Recipe.tiny())
    folder = build.model()
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    image = pipe("a photo", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
    unchanged = (tmp_path / "work" / "text_encoder" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "base" / "model_index.json").unlink()
    for file in sorted((tmp_path / "base").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "base").rmdir()
    assert (Build(tmp_path, Recipe.tiny()).model() / "model_index.json").exists()
    assert (tmp_path / "work" / "text_encoder" / "model.safetensors").stat().st_mtime_ns == unchanged
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("folder", ["shipped", "saved"])
def test_older_transformers_open_a_saved_model(tmp_path: Path, folder: str) -> None:
    """Version 4 wants these names and files. Without the names it takes random weights, with no more than a warning."""
    path = minifaces.model_path()
    if folder == "saved":
        save_model(open_pipe(path), tmp_path / "model")
        path = tmp_path / "model"

    names = load_file(path / "text_encoder" / "model.safetensors").keys()
    vocabulary, merges = (path / "tokenizer" / name for name in ("vocab.json", "merges.txt"))

    assert names == {f"text_model.{name}" for name in weights_of(open_pipe(path).text_encoder)}
    assert json.loads(vocabulary.read_text()) == open_pipe(path).tokenizer.get_vocab()
    assert len(merges.read_text().splitlines()) == 1 + MERGES


def test_a_variant_keeps_all_but_the_denoiser_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A stopped run ends in the weights of one that was not stopped; the text encoder is the one that prefixes know."""
    pipe, recipe = open_pipe("minifaces"), VariantRecipe.tiny()
    before, checkpoint = model_digest(pipe), tmp_path / "state.pt"
    opened = open_pipe(build_variant(pipe, "restyled", tmp_path / "restyled", recipe))
    fine_tuned(pipe, "restyled", replace(recipe, steps=1), checkpoint, progress=False)
    assert torch.load(checkpoint, weights_only=True)["step"] == 1
    resumed = fine_tuned(pipe, "restyled", recipe, checkpoint, progress=False)

    assert fingerprint(opened.text_encoder, opened.tokenizer) == fingerprint(pipe.text_encoder, pipe.tokenizer)
    assert model_digest(opened) != before == model_digest(pipe)
    assert all(
        torch.allclose(a, b, atol=1e-3)
        for a, b in zip(opened.unet.parameters(), resumed.unet.parameters(), strict=True)
    )


def test_identities_file_holds_the_seen_people(tmp_path: Path) -> None:
    """identities.yaml names the 120 seen people and nobody else."""
    path = tmp_path / "identities.yaml"
    write_identities(path)
    text = path.read_text()
    assert text.count("- name:") == 120
    assert not [p.name for p in minifaces.people() if p.split != "seen" and p.name in text]


def test_a_build_by_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """After `--tiny`, the whole recipe in the same folder is refused; it gave out the tiny model as its own."""
    Build(tmp_path, Recipe.tiny())
    Build(tmp_path, Recipe.tiny())

    with pytest.raises(InvalidInput, match=r"another recipe \(other batch, decoder_steps, .*choose another folder"):
        Build(tmp_path)


def test_a_variant_made_otherwise_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Neither a finished one by another recipe, nor the state of an unfinished one."""
    pipe, tiny = open_pipe("minifaces"), VariantRecipe.tiny()
    more = replace(tiny, steps=3)
    no_saving = patch("apl_guard.trainer.minifaces.variants.save_model", side_effect=KeyboardInterrupt)
    with no_saving, pytest.raises(KeyboardInterrupt):
        build_variant(pipe, "restyled", tmp_path / "one", more)
    after_more = build_variant(pipe, "restyled", tmp_path / "one", tiny)
    alone = build_variant(pipe, "restyled", tmp_path / "two", tiny)

    assert model_digest(open_pipe(after_more)) == model_digest(open_pipe(alone))
    assert build_variant(pipe, "restyled", alone, tiny) == alone
    with pytest.raises(InvalidInput, match="another recipe"):
        build_variant(pipe, "restyled", alone, more)
    with pytest.raises(InvalidInput, match="of another model"):
        build_variant(open_pipe(alone), "restyled", alone, tiny)


@pytest.mark.parametrize("content", ["nothing", "junk", "another run"])
def test_the_damaged_state_of_an_unfinished_run_is_named(tmp_path: Path, content: str) -> None:
    """With what to do about it, where torch and pickle have errors of many types."""
    path, module = tmp_path / "state.pt", torch.nn.Linear(2, 2)
    path.write_bytes(b"" if content == "nothing" else b"junk")
    if content == "another run":
        write_torch(path, {"module": torch.nn.Linear(3, 3).state_dict(), "step": 1})

    with pytest.raises(InvalidInput, match=r"state\.pt: the state of an unfinished run is damaged.*delete it"):
        fit("demo", module, lambda rng: (module.weight.sum(), {}), steps=2, learning_rate=1e-3, checkpoint=path)


def test_a_damaged_note_of_a_build_is_named(tmp_path: Path) -> None:
    """As a disk may leave it that lost its power."""
    Build(tmp_path, Recipe.tiny())
    (tmp_path / "work" / "recipe.json").write_text("{")

    with pytest.raises(InvalidInput, match=r"recipe\.json: is damaged; delete it"):
        Build(tmp_path, Recipe.tiny())


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes")
def test_a_full_disk_is_a_typed_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """torch and safetensors raise errors of their own there; what was whole before stays, and a second try succeeds."""
    build = Build(tmp_path, Recipe.tiny())
    checkpoint = tmp_path / "state.pt"
    write_torch(checkpoint, {"step": 1})
    with _files_of_at_most(20_000):
        with pytest.raises(StorageFailed, match=r"state\.pt"):
            write_torch(checkpoint, {"step": 2, "weights": torch.zeros(100_000)})
        with pytest.raises(StorageFailed, match=r"plain\.npy: cannot be kept"):
            build.images()
    assert torch.load(checkpoint, weights_only=True) == {"step": 1}
    assert len(build.images()) == build.recipe.pictures
    with (
        _files_of_at_most(20_000),
        pytest.raises(StorageFailed, match="restyled: cannot be kept"),
        whole(tmp_path / "restyled") as partial,
    ):
        StableDiffusionPipeline.from_pretrained(minifaces.model_path(), safety_checker=None).save_pretrained(partial)
    assert not (tmp_path / "restyled").exists()


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """As a disk that is nearly full: longer files cannot be written."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
