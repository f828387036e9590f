"""A gallery of people, its file, and the pictures that are held against it."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from apl_guard import Gallery, InvalidInput, OutputCheck, OutputCheckFailed
from apl_guard.detect.pictures import read_pictures

ENTRY = "case 17"


class Listed:
    """Sees in a picture the faces that a test put there: picture k is filled with k."""

    name = "listed 1"

    def __init__(self, faces):
        self.faces = faces

    def __call__(self, pictures):
        if self.faces is None:  # answers for the first alone
            return [np.ones((1, 2), np.float32)]
        return [np.array(self.faces[int(picture[0, 0, 0])], dtype=np.float32).reshape(-1, 2) for picture in pictures]


def filled(value):
    return np.full((2, 2, 3), value, np.uint8)


@pytest.fixture
def gallery():
    """Two people, one of them by two pictures."""
    faces = [[(1, 0)], [(1, 0.1)], [(0, 1)]]
    return Gallery.enroll(Listed(faces), {"case 16": [filled(0), filled(1)], ENTRY: [filled(2)]})


def test_a_gallery_survives_its_file(gallery, tmp_path, monkeypatch):
    """Entry for entry and bit for bit, at every moment readable for its owner alone."""
    modes, replace = [], Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda file, to: modes.append(file.stat().st_mode & 0o777) or replace(file, to)
    )
    gallery.save(tmp_path / "gallery.safetensors")
    again = Gallery.load(tmp_path / "gallery.safetensors")
    assert (again.entries, again.digest) == (gallery.entries, gallery.digest)
    assert np.array_equal(again.embeddings, gallery.embeddings)
    assert [*modes, (tmp_path / "gallery.safetensors").stat().st_mode & 0o777] == [0o600, 0o600]


OTHER = {"format": "apl-guard gallery 9", "recogniser": "x 1", "entries": '["a", "b"]'}


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "cut off", save({"embeddings": np.eye(2)}, OTHER)])
def test_a_file_that_is_no_gallery_is_a_typed_error(gallery, tmp_path, content):
    """Missing, empty, something else, cut off, of another format."""
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
        ([[]], [filled(0)], "image 1 has 0 faces"),
        ([[(1, 0)], [(1, 0), (0, 1)]], [filled(0), filled(1)], "image 2 has 2 faces"),
        ([[(1, 0)]], [], "no images"),
        ([[(1, 0.1)], [(1, 0)], [(-1, 0.2)]], [filled(0), filled(1), filled(2)], "two people under one name"),
        ([[(0, 0)]], [filled(0)], "length 0"),
        (None, [filled(0), filled(1)], "gave 1 answers for 2 images"),
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


@pytest.mark.parametrize(
    ("entries", "embeddings", "says"),
    [
        (["a", "a"], np.eye(2), "twice"),
        (["a"], np.eye(2), "2 embeddings for 1"),
        ([], np.eye(2)[:0], "0 embeddings for 0"),
    ],
)
def test_every_embedding_has_an_entry_of_its_own(entries, embeddings, says):
    """Two people under one id could not be told apart, and a gallery of nobody would let everybody pass."""
    with pytest.raises(InvalidInput, match=says):
        Gallery(entries, embeddings, "x 1")


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


def of_pil(*pictures, form="WEBP", **options):
    written = io.BytesIO()
    pictures[0].save(written, form, **({"save_all": True, "append_images": pictures[1:]} if pictures[1:] else options))
    return Image.open(io.BytesIO(written.getvalue()))


def test_all_pictures_of_nested_tuples_are_read():
    """A tuple in a list holds pictures; one that begins with a list or a batch holds other things behind it."""
    white, black = (Image.new("RGB", (4, 4), colour) for colour in ("white", "black"))
    assert [p.max() for p in read_pictures([(white, black), black])] == [255, 0, 0]
    assert [p.max() for p in read_pictures((white, black))] == [255, 0]
    assert len(read_pictures(([white, black], [False, False]))) == 2
    assert len(read_pictures((np.zeros((2, 4, 4, 3)), [False, False]))) == 2


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (lambda: of_pil(Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")), "holds 2 images"),
        (lambda: Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "8 bits"),
        (lambda: Image.fromarray(np.full((4, 4), 0.5, np.float32)), "8 bits"),
        (lambda: Image.open(io.BytesIO(of_pil(filled_with_noise(), form="PNG").fp.getvalue()[:1000])), "decoded"),
    ],
)
def test_pictures_that_would_be_looked_at_in_part_are_refused(picture, says):
    """Several in one file, more than a byte a colour, cut off: enrolling says whose."""
    with pytest.raises(OutputCheckFailed, match=says):
        read_pictures([picture()])
    with pytest.raises(InvalidInput, match=says) as caught:
        Gallery.enroll(Listed([]), {ENTRY: [picture()]})
    assert ENTRY in str(caught.value)


def filled_with_noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_photographs_are_turned_the_right_way_up():
    """As every viewer does; a recogniser finds no face that lies on its side."""
    stored, exif = Image.new("RGB", (6, 4)), Image.Exif()
    stored.putpixel((0, 0), (255, 255, 255))
    exif[0x112] = 3  # turned by 180 degrees

    (read,) = read_pictures(of_pil(stored, form="PNG", exif=exif))
    assert read[-1, -1].min() == 255
    assert read[0, 0].max() == 0


def test_embeddings_beyond_all_bounds_are_none():
    """Their length overflows, and they would be like nobody."""
    check = OutputCheck(Listed([[(1e30, 0)]]), Gallery(["a"], [[1.0, 0.0]], Listed.name), 0.5)
    with pytest.raises(OutputCheckFailed, match="beyond all bounds"):
        check.look([filled(0)])


@pytest.mark.parametrize(
    "output",
    [
        *(None, "a picture", np.zeros((1, 4, 8, 8)), np.zeros((1, 4, 4, 3), np.int32)),
        *(np.full((1, 4, 4, 3), np.nan), torch.randn(1, 3, 8, 8) * 3),
    ],
)
def test_what_holds_no_pictures_is_not_taken_for_some(output):
    """Nothing, text, four channels, integers of no known range, no numbers, latents that have three channels."""
    with pytest.raises(OutputCheckFailed):
        read_pictures(output)
