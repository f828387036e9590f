"""Reference pictures of people: what is read from a folder, and what is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apl_guard.errors import InvalidInput
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.apl2026.references import References, read_references
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

    references = read_references(drawn, NAMES, judges, per_person=3)

    assert references.names == tuple(NAMES)
    assert references.pictures == 60
    rng = random.Random(1)
    fresh = np.asarray(draw_all([of_person(person, rng) for person in PEOPLE], seed=1))
    similar = judges.embed(fresh) @ references.embeddings.T
    assert (similar.argmax(-1) == torch.arange(20)).float().mean() >= 0.9
    images = [np.asarray(Image.open(drawn / name / f"{k}.png")) for name in NAMES for k in range(3)]
    pairs = (judges.embed(np.stack(images)) @ references.embeddings.T).numpy()
    strangers = np.array([pairs[row, k] for row in range(60) for k in range(20) if row // 3 != k])
    assert (strangers >= references.thresholds["far_1e-2"]).mean() == pytest.approx(0.01, abs=0.001)
    assert "far_1e-3" not in references.thresholds, "1,140 pairs are too few for a rate of one in a thousand"


def test_too_few_pairs_set_no_threshold(drawn: Path) -> None:
    """Two people with one picture each give two pairs: there is no rate of false acceptance to state."""
    assert read_references(drawn, NAMES[:2], minifaces.judges()).thresholds == {}


def test_a_picture_without_a_face_is_refused(folder: Path) -> None:
    """The message names the file."""
    thing = draw_all([of_things(random.Random(0), count=1)], seed=0)[0]
    Image.fromarray(np.asarray(thing)).save(folder / NAMES[4] / "1.png")

    with pytest.raises(InvalidInput, match=r"1\.png: no face"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)


def test_a_folder_half_full_is_refused(folder: Path) -> None:
    """The message names the folder, what was found and how many are expected; so does that of a missing one."""
    (folder / NAMES[3] / "2.png").unlink()
    with pytest.raises(InvalidInput, match=rf"{NAMES[3]}: found 2 pictures of entry 4; expected at least 3"):
        read_references(folder, NAMES, minifaces.judges(), per_person=3)

    shutil.rmtree(folder / NAMES[2])
    with pytest.raises(InvalidInput, match="found 0 pictures of entry 3"):
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
