"""A gallery of people, its file, and the pictures that are held against it."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apl_guard import Gallery, InvalidInput, OutputCheck, OutputCheckFailed
from apl_guard.detect.pictures import read_pictures

ENTRY = "case 17"


class Listed:
    """Sees in a picture the faces that a test put there: picture k is filled with k."""

    name = "listed 1"

    def __init__(self, faces):
        self.faces = faces

    def __call__(self, pictures):
        return [np.array(self.faces[int(picture[0, 0, 0])], dtype=np.float32).reshape(-1, 2) for picture in pictures]


def filled(value):
    return np.full((2, 2, 3), value, np.uint8)


@pytest.fixture
def gallery():
    """Two people, one of them by two pictures."""
    faces = [[(1, 0)], [(1, 0.1)], [(0, 1)]]
    return Gallery.enroll(Listed(faces), {"case 16": [filled(0), filled(1)], ENTRY: [filled(2)]})


def test_a_gallery_survives_its_file(gallery, tmp_path):
    """Entry for entry and bit for bit, readable for its owner alone."""
    gallery.save(tmp_path / "gallery.safetensors")
    again = Gallery.load(tmp_path / "gallery.safetensors")
    assert (again.entries, again.digest) == (gallery.entries, gallery.digest)
    assert np.array_equal(again.embeddings, gallery.embeddings)
    assert (tmp_path / "gallery.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "cut off"])
def test_a_file_that_is_no_gallery_is_a_typed_error(gallery, tmp_path, content):
    """Missing, empty, something else, cut off."""
    path = tmp_path / "gallery.safetensors"
    if content == "cut off":
        gallery.save(path)
        content = path.read_bytes()[:-100]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match="gallery"):
        Gallery.load(path)


def test_a_pipe_is_no_gallery(tmp_path):
    """It is refused, not waited for."""
    os.mkfifo(tmp_path / "gallery.safetensors")
    with pytest.raises(InvalidInput, match="no such file"):
        Gallery.load(tmp_path / "gallery.safetensors")


@pytest.mark.parametrize(
    ("faces", "pictures", "says"),
    [
        ([[]], [filled(0)], "picture 1 has 0 faces"),
        ([[(1, 0)], [(1, 0), (0, 1)]], [filled(0), filled(1)], "picture 2 has 2 faces"),
        ([[(1, 0)]], [], "no pictures"),
        ([[(1, 0.1)], [(1, 0)], [(-1, 0.2)]], [filled(0), filled(1), filled(2)], "two people under one name"),
        ([[(0, 0)]], [filled(0)], "length 0"),
    ],
)
def test_a_gallery_is_made_of_good_pictures_only(faces, pictures, says):
    """One face in each, and one person in an entry; the message names the entry and the picture."""
    with pytest.raises(InvalidInput, match=says) as caught:
        Gallery.enroll(Listed(faces), {ENTRY: pictures})
    assert ENTRY in str(caught.value)


def test_a_gallery_of_another_recogniser_is_refused(gallery):
    """For its embeddings mean nothing to this one."""
    other = Listed([])
    other.name = "listed 2"
    with pytest.raises(InvalidInput, match=r"listed 1.*listed 2"):
        OutputCheck(other, gallery, 0.5)


def test_an_entry_twice_is_refused():
    """Two people under one id could not be told apart."""
    with pytest.raises(InvalidInput, match="twice"):
        Gallery(["a", "a"], np.eye(2), "x 1")


@given(st.lists(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), max_size=3), min_size=1, max_size=4))
def test_a_picture_matches_when_any_of_its_faces_does(faces):
    """As often as cosines computed one by one say; a picture without faces never does."""
    gallery = Gallery(["a", "b"], np.array([[1.0, 0.0], [0.6, 0.8]]), Listed.name)
    looked = OutputCheck(Listed(faces), gallery, 0.7).look([filled(k) for k in range(len(faces))])
    assert looked.faces == tuple(map(len, faces))
    for number, found in enumerate(faces):
        best = max((float(np.dot(f, g) / np.linalg.norm(f)) for f in found for g in gallery.embeddings), default=-2)
        if abs(best - 0.7) > 1e-5:
            assert (number in {s.picture for s in looked.sightings}) == (best >= 0.7)


@given(st.integers(1, 3), st.integers(0, 10**6))
def test_pictures_are_read_alike_from_every_type(n, seed):
    """Bytes, floats, tensors with the colours first, PIL, lists and tuples of them."""
    expected = np.random.default_rng(seed).integers(0, 256, (n, 4, 6, 3), dtype=np.uint8)
    floats = expected.astype(np.float32) / 255
    outputs = [
        expected,
        floats,
        torch.from_numpy(floats).permute(0, 3, 1, 2),
        [Image.fromarray(picture) for picture in expected],
        (list(expected), None),
        [torch.from_numpy(picture).permute(2, 0, 1) for picture in floats],
    ]
    for output in outputs:
        assert np.array_equal(np.stack(read_pictures(output)), expected)


@pytest.mark.parametrize(
    "output", [None, "a picture", np.zeros((1, 4, 8, 8)), np.full((1, 4, 4, 3), np.nan), torch.randn(1, 3, 8, 8) * 3]
)
def test_what_holds_no_pictures_is_not_taken_for_some(output):
    """Nothing, text, four channels, no numbers, latents that have three channels like a picture."""
    with pytest.raises(OutputCheckFailed):
        read_pictures(output)
