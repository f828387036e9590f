"""Reference pictures of people: what is read from a folder, and what is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from apl_guard.errors import InvalidInput
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.apl2026 import references
from apl_guard.trainer.evaluate.apl2026.references import References, read_references
from apl_guard.trainer.evaluate.result import Pictures
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.pictures import of_person, of_things

PEOPLE = minifaces.people()[:20]
NAMES = [person.name for person in PEOPLE]


@pytest.fixture(name="drawn", scope="module")
def _drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawings of each of twenty people of the reference world."""
    folder = tmp_path_factory.mktemp("references")
    rng = random.Random(0)
    for person in PEOPLE:
        (folder / person.name).mkdir()
        for k, image in enumerate(draw_all([of_person(person, rng) for _ in range(3)], seed=0)):
            Image.fromarray(np.asarray(image)).save(folder / person.name / f"{k}.png")
    return folder


@pytest.fixture(name="folder")
def _folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(drawn, tmp_path / "references"))


def test_people_are_found_by_their_references(drawn: Path) -> None:
    """New drawings are nearest to their person's reference; thresholds are quantiles over pairs of different people."""
    judges = minifaces.judges()

    known = read_references(drawn, NAMES, judges, per_person=3)

    assert known.names == tuple(NAMES)
    assert known.pictures == 60
    rng = random.Random(1)
    fresh = np.asarray(draw_all([of_person(person, rng) for person in PEOPLE], seed=1))
    similar = judges.embed(fresh) @ known.embeddings.T
    assert (similar.argmax(-1) == torch.arange(20)).float().mean() >= 0.9
    images = [np.asarray(Image.open(drawn / name / f"{k}.png")) for name in NAMES for k in range(3)]
    pairs = (judges.embed(np.stack(images)) @ known.embeddings.T).numpy()
    strangers = np.array([pairs[row, k] for row in range(60) for k in range(20) if row // 3 != k])
    assert (strangers >= known.thresholds["far_1e-2"]).mean() == pytest.approx(0.01, abs=0.001)
    assert "far_1e-3" not in known.thresholds, "1,140 pairs are too few for a rate of one in a thousand"


def test_too_few_pairs_set_no_threshold(drawn: Path) -> None:
    """Two people with one picture each make one pair: there is no rate of false acceptance to state."""
    assert read_references(drawn, NAMES[:2], minifaces.judges()).thresholds == {}


class _Random:
    """Takes every picture for a face, and gives each another embedding at random."""

    name, digest = "random", ""

    def __init__(self) -> None:
        self._rng = torch.Generator().manual_seed(0)

    def has_face(self, images: Pictures) -> npt.NDArray[np.bool_]:
        return np.ones(len(images), np.bool_)

    def embed(self, images: Pictures) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(len(images), 64, generator=self._rng), dim=-1)


def _folders(folder: Path, count: int) -> list[str]:
    names = [f"person {k}" for k in range(count)]
    for name in names:
        (folder / name).mkdir()
        Image.new("RGB", (4, 4)).save(folder / name / "1.png")
    return names


@pytest.mark.parametrize(("people", "is_set"), [(45, False), (46, True)])
def test_two_people_with_one_picture_each_are_one_pair(people: int, is_set: bool, tmp_path: Path) -> None:
    """A cosine is the same both ways round: 45 people give 990 comparisons, too few for a rate of one in a hundred."""
    found = read_references(tmp_path, _folders(tmp_path, people), _Random())

    assert ("far_1e-2" in found.thresholds) is is_set


def test_thresholds_are_set_however_many_people_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes quantiles of no more than 16 million values, which 4,100 people have."""
    monkeypatch.setattr(references, "image_files", lambda folder: [folder])
    monkeypatch.setattr(references, "read_image", lambda path: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)

    found = read_references(tmp_path, [str(k) for k in range(4200)], _Random())

    assert 0 < found.thresholds["far_1e-2"] < found.thresholds["far_1e-3"] < 1


def test_a_picture_without_a_face_is_refused(folder: Path) -> None:
    """The message names the file."""
    thing = draw_all([of_things(random.Random(0), count=1)], seed=0)[0]
    Image.fromarray(np.asarray(thing)).save(folder / NAMES[4] / "1.png")

    with pytest.raises(InvalidInput, match=r"1\.png: no face"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)


def test_a_folder_half_full_is_refused(folder: Path) -> None:
    """The message names the folder, what was found and how many are expected; so does that of a missing one."""
    (folder / NAMES[3] / "2.png").unlink()
    with pytest.raises(InvalidInput, match=rf"{NAMES[3]}: found 2 images of entry 4; expected at least 3"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)

    shutil.rmtree(folder / NAMES[2])
    with pytest.raises(InvalidInput, match="found 0 images of entry 3"):
        read_references(folder, NAMES, minifaces.judges(), per_person=2)


def test_a_picture_that_cannot_be_read_is_refused(folder: Path) -> None:
    """A file that is cut short is no picture."""
    path = folder / NAMES[0] / "0.png"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(InvalidInput, match=r"0\.png: not an image"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)


def test_two_people_under_one_name_are_refused(folder: Path) -> None:
    """A folder that holds somebody else's picture would make an average of two people, who resembles neither."""
    shutil.copy(folder / NAMES[7] / "0.png", folder / NAMES[5] / "1.png")

    with pytest.raises(InvalidInput, match=rf"{NAMES[5]}/1\.png: looks more like entry 8 .*two people under one name"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)


def test_one_name_stands_for_one_person() -> None:
    """Names that differ by case or spaces alone are one name."""
    with pytest.raises(InvalidInput, match="entries 1 and 3 have the same name"):
        References(("Ada Lum", "Bo Tarn", "ada  lum"), torch.eye(3), {}, 3)
