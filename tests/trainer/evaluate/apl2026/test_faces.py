"""Recognisers from files: what they see, and that no file is taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apl_guard.errors import InvalidInput, ModelInvalid
from apl_guard.trainer.evaluate.apl2026.faces import FaceJudge, embed_faces
from apl_guard.trainer.evaluate.apl2026.insight_faces import InsightFaces, similarity
from apl_guard.trainer.evaluate.apl2026.opencv_faces import OpenCVFaces
from apl_guard.trainer.evaluate.apl2026.recognisers import open_faces
from apl_guard.trainer.evaluate.apl2026.references import read_references


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    onnx_models.yunet(folder / "yunet.onnx")
    onnx_models.scrfd(folder / "scrfd.onnx")
    onnx_models.recogniser(folder / "sface.onnx", 128, (1, 3, 112, 112))
    onnx_models.recogniser(folder / "arcface.onnx", 512)
    return folder


@pytest.fixture(name="faces", params=["yunet sface", "scrfd arcface"])
def _faces(request: pytest.FixtureRequest, files: Path) -> FaceJudge:
    detector, recogniser = request.param.split()
    return open_faces(files / f"{detector}.onnx", files / f"{recogniser}.onnx")


def picture(seed: int, x: int = 96, y: int = 64, side: int = 320) -> np.ndarray:
    """A dark picture with a bright patch of some colours, 32 pixels wide: what the detectors take for a face."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 20, np.uint8)
    image[y : y + 32, x : x + 32] = rng.integers(170, 256, size=(4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return image


def test_the_files_say_what_they_are(files: Path) -> None:
    """YuNet and SFace go to OpenCV, SCRFD and ArcFace to onnxruntime; other files have other digests."""
    opencv = open_faces(files / "yunet.onnx", files / "sface.onnx")
    insight = open_faces(files / "scrfd.onnx", files / "arcface.onnx")

    assert isinstance(opencv, OpenCVFaces)
    assert isinstance(insight, InsightFaces)
    assert opencv.digest != insight.digest
    assert opencv.embed(picture(0)[None]).shape == (1, 128)
    assert insight.embed(picture(0)[None]).shape == (1, 512)


def test_a_face_is_found_where_there_is_one(faces: FaceJudge) -> None:
    """Without a face the embedding is zero, with one it has unit length."""
    pictures = np.stack([picture(0), np.full((320, 320, 3), 20, np.uint8), picture(1)])

    assert faces.has_face(pictures).tolist() == [True, False, True]
    assert faces.embed(pictures).norm(dim=-1).tolist() == pytest.approx([1, 0, 1], abs=1e-5)


def test_an_embedding_belongs_to_the_face_and_not_to_its_place(faces: FaceJudge) -> None:
    """The same face elsewhere in the picture has the same embedding, another face another one."""
    here, there, other = faces.embed(np.stack([picture(0), picture(0, x=160, y=192), picture(1)]))

    assert torch.dot(here, there) > 0.999
    assert torch.dot(here, other) < torch.dot(here, there)
    assert torch.equal(faces.embed(picture(0)[None])[0], here)


def test_landmarks_are_mapped_back_to_the_picture(files: Path) -> None:
    """SCRFD looks at a square of 640 pixels; its answer is where the face is in the user's picture, of any size."""
    faces = open_faces(files / "scrfd.onnx", files / "arcface.onnx")
    assert isinstance(faces, InsightFaces)
    image = np.full((160, 320, 3), 20, np.uint8)
    image[32:48, 64:80] = 250  # one cell of 32 pixels where the picture is drawn twice as large

    landmarks = faces._find(image)

    assert landmarks == pytest.approx((np.array([128, 64]) + 32 * onnx_models.LANDMARKS) / 2, abs=1e-3)


finite = st.floats(-50, 50)


@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=6, unique=True), finite, finite, finite, finite)
def test_a_similarity_is_recovered_from_points(
    points: list[tuple[float, float]], a: float, b: float, x: float, y: float
) -> None:
    """Points that were turned, stretched and shifted tell by how much."""
    source = np.array(points, np.float64)
    if np.ptp(source, axis=0).max() < 1:
        return
    matrix = np.array([[a, -b, x], [b, a, y]])
    target = source @ matrix[:, :2].T + matrix[:, 2]

    found = similarity(source.astype(np.float64), target)

    assert source @ found[:, :2].T + found[:, 2] == pytest.approx(target, abs=0.05)


@pytest.mark.parametrize(
    ("detector", "recogniser", "where", "message"),
    [
        ("yunet", "arcface", "arcface", "embeddings of 512 numbers; expected SFace"),
        ("yunet", "scrfd", "scrfd", r"recogniser of another architecture.*9 outputs"),
        ("arcface", "arcface", "arcface", "detector of another architecture, with 1 outputs"),
        ("without_landmarks", "arcface", "without_landmarks", "not SCRFD's scores, boxes and landmarks"),
        ("text", "sface", "text", "not an ONNX model"),
        ("missing", "sface", "missing", "no such file"),
        ("yunet", "half", "half", "not an ONNX model"),
    ],
)
def test_a_file_of_another_architecture_is_refused(
    files: Path, tmp_path: Path, detector: str, recogniser: str, where: str, message: str
) -> None:
    """The error names the file, what was found and what was expected."""
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    onnx_models.scrfd(tmp_path / "without_landmarks.onnx", landmarks=6)
    (tmp_path / "text.onnx").write_text("no model")
    whole = (files / "sface.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ModelInvalid, match=rf"{where}\.onnx.*{message}"):
        open_faces(tmp_path / f"{detector}.onnx", tmp_path / f"{recogniser}.onnx")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("two at once", "cannot be run on one image"),
        ("many rows", r"gives \(7, 512\) for one face; expected \(1, E\)"),
    ],
)
def test_a_recogniser_that_takes_or_gives_something_else_is_refused(
    files: Path, tmp_path: Path, file: str, message: str
) -> None:
    """What the declared shapes leave open shows when it runs: an error that names the file, and no traceback."""
    path = tmp_path / f"{file}.onnx"
    onnx_models.recogniser(path, 512, (2 if file == "two at once" else "n", 3, 112, 112))
    if file == "many rows":
        onnx_models.and_then(path, "Expand", np.array([7, 512]))

    with pytest.raises(ModelInvalid, match=rf"{file}\.onnx: .*{message}"):
        open_faces(files / "scrfd.onnx", path)


@pytest.mark.parametrize("output", ["out_1_8", "out_4_16", "out_10_32"])
def test_a_detector_whose_answers_are_not_numbers_is_refused(files: Path, tmp_path: Path, output: str) -> None:
    """It saw no face in any picture, so that everybody counted as hidden."""
    path = tmp_path / "nan.onnx"
    path.write_bytes((files / "scrfd.onnx").read_bytes())
    onnx_models.and_then(path, "Mul", np.float32([np.nan]), output=output)

    with pytest.raises(ModelInvalid, match=r"nan\.onnx: .*not numbers"):
        open_faces(path, files / "arcface.onnx")


def test_a_recogniser_that_sees_nothing_in_a_face_is_refused(files: Path, tmp_path: Path) -> None:
    """Zeros are alike to nobody, so that everybody counted as hidden; a picture without a face may have them."""
    path = tmp_path / "zeros.onnx"
    path.write_bytes((files / "arcface.onnx").read_bytes())
    onnx_models.and_then(path, "Mul", np.float32([0]))
    faces = open_faces(files / "scrfd.onnx", path)
    dark = np.zeros((1, 320, 320, 3), np.uint8)

    assert not embed_faces(faces, dark, faces.has_face(dark)).any()
    with pytest.raises(ModelInvalid, match="all zeros"):
        embed_faces(faces, picture(0)[None], faces.has_face(picture(0)[None]))


def test_a_recogniser_that_tells_nobody_apart_is_refused(files: Path, tmp_path: Path) -> None:
    """Before anything is drawn: at its thresholds everybody, or nobody, would be found."""
    path = tmp_path / "constant.onnx"
    path.write_bytes((files / "arcface.onnx").read_bytes())
    onnx_models.and_then(path, "Mul", np.float32([0]))
    onnx_models.and_then(path, "Add", np.float32([1]))
    for number, name in enumerate(("Ada", "Bo")):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(number)).save(tmp_path / name / "1.png")

    with pytest.raises(InvalidInput, match="all 2 people look one and the same"):
        read_references(tmp_path, ["Ada", "Bo"], open_faces(files / "scrfd.onnx", path))
    assert read_references(tmp_path, ["Ada", "Bo"], open_faces(files / "scrfd.onnx", files / "arcface.onnx"))
