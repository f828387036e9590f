"""The recogniser for photographs: every face of a picture counts, and no file is taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
import pytest

from apl_guard import Gallery, InvalidInput, OutputCheck
from apl_guard.detect.opencv_faces import OpenCVFaces


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    onnx_models.yunet(folder / "yunet.onnx")
    onnx_models.recogniser(folder / "sface.onnx", 128, (1, 3, 112, 112))
    onnx_models.recogniser(folder / "wide.onnx", 256, (1, 3, 112, 112))
    return folder


@pytest.fixture(name="faces", scope="module")
def _faces(files: Path) -> OpenCVFaces:
    return OpenCVFaces(files / "yunet.onnx", files / "sface.onnx")


def picture(*people: int) -> np.ndarray:
    """A dark picture with a bright patch of eight pixels for each person: what the small detector takes for a face."""
    image = np.full((160, 320, 3), 20, np.uint8)
    for place, person in enumerate(people, 1):
        colours = np.random.default_rng(person).integers(170, 256, size=(4, 4, 3), dtype=np.uint8)
        image[64:72, 64 * place : 64 * place + 8] = colours.repeat(2, 0).repeat(2, 1)
    return image


def test_every_face_has_an_embedding(faces):
    """None, one and three in pictures of one call; a face has the same embedding wherever it stands."""
    none, one, three = faces([picture(), picture(1), picture(2, 3, 1)])
    assert [each.shape for each in (none, one, three)] == [(0, 128), (1, 128), (3, 128)]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, three)]
    assert sorted(np.round(unit[0] @ unit[1].T, 3)[0].tolist())[-1] == pytest.approx(1, abs=1e-3)


def test_somebody_of_the_gallery_is_seen_among_others(faces):
    """In a picture of three, where the surest face alone might be another; a picture of others is released."""
    check = OutputCheck(faces, Gallery.enroll(faces, {"case 17": [picture(1)]}), threshold=0.9999)
    looked = check.look([picture(2, 3), picture(2, 1, 3), picture()])
    assert looked.faces == (2, 3, 0)
    assert [(sighting.picture, sighting.entry) for sighting in looked.sightings] == [(1, "case 17")]


def test_a_group_is_nobodys_entry(faces):
    """Whose face is meant could not be told."""
    with pytest.raises(InvalidInput, match="image 1 has 2 faces"):
        Gallery.enroll(faces, {"case 17": [picture(1, 2)]})


@pytest.mark.parametrize(
    ("detector", "recogniser", "says"),
    [
        ("missing.onnx", "sface.onnx", "expected YuNet"),
        ("yunet.onnx", "missing.onnx", "expected SFace"),
        ("sface.onnx", "sface.onnx", "as YuNet"),
        ("yunet.onnx", "wide.onnx", "256 numbers"),
    ],
)
def test_other_files_are_refused(files, detector, recogniser, says):
    """With the file that is wrong and what it should have been."""
    with pytest.raises(InvalidInput, match=says):
        OpenCVFaces(files / detector, files / recogniser)


def test_galleries_of_other_files_are_not_mixed_up(files, faces, tmp_path):
    """The name of the recogniser says which files it was made of."""
    other = tmp_path / "yunet.onnx"
    onnx_models.yunet(other, everywhere=True)
    assert OpenCVFaces(other, files / "sface.onnx").name != faces.name
