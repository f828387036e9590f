"""The faces in photographs, for the output check: YuNet finds them, SFace tells them apart, both by OpenCV."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apl_guard.detect.gallery import Embeddings
from apl_guard.detect.pictures import Picture
from apl_guard.errors import ExtraMissing, ModelInvalid

__all__ = ["WIDTH", "OpenCVFaces"]

_OVERLAP = 0.3
"""From which overlap two boxes are of one face."""
_MOST_BOXES = 5000
WIDTH = 128
"""Of SFace's embeddings."""


class OpenCVFaces:
    """A recogniser for photographs: an embedding for every face in a picture.

    Args:
        detector: ONNX file of YuNet.
        recogniser: ONNX file of SFace.
        sure: Score, in (0, 1], from which what the detector sees counts as a face. Lower finds more.

    Raises:
        ModelInvalid: A file is missing, or OpenCV cannot use it as that.
        ExtraMissing: OpenCV is not installed.
    """

    def __init__(self, detector: str | Path, recogniser: str | Path, *, sure: float = 0.6) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ExtraMissing("faces", needs="opencv-python-headless") from error
        cv: Any = cv2
        digest = hashlib.sha256(_digest(Path(detector), "YuNet") + _digest(Path(recogniser), "SFace"))
        self.name = f"YuNet and SFace {digest.hexdigest()[:12]}"
        """Other files have another name, so that their galleries are not mixed up."""
        self._alone = threading.Lock()
        try:
            self._detector = cv.FaceDetectorYN.create(str(detector), "", (320, 320), sure, _OVERLAP, _MOST_BOXES)
            self._detector.detect(np.zeros((320, 320, 3), np.uint8))
        except cv.error as error:
            raise ModelInvalid("OpenCV cannot use it as YuNet", where=detector) from error
        try:
            self._recogniser = cv.FaceRecognizerSF.create(str(recogniser), "")
            width = self._recogniser.feature(np.zeros((112, 112, 3), np.uint8)).size
        except cv.error as error:
            raise ModelInvalid("OpenCV cannot use it as SFace", where=recogniser) from error
        if width != WIDTH:
            raise ModelInvalid(f"embeddings of {width} numbers; expected SFace, which has {WIDTH}", where=recogniser)

    def __call__(self, pictures: Sequence[Picture]) -> list[Embeddings]:
        """The embeddings of the faces in each picture, shape (faces, 128)."""
        with self._alone:  # the detector is told the size of a picture before it gets the picture
            return [self.embed(picture, self.find(picture)) for picture in pictures]

    def find(self, picture: Picture) -> list[Any]:
        """The faces in a picture, as OpenCV gives them: the last number says how sure it is. Not thread-safe."""
        self._detector.setInputSize((picture.shape[1], picture.shape[0]))
        _, faces = self._detector.detect(_bgr(picture))
        return [] if faces is None else list(faces)

    def embed(self, picture: Picture, faces: Sequence[Any]) -> Embeddings:
        """The embeddings of some of the faces found in a picture, shape (faces, 128). Not thread-safe."""
        bgr = _bgr(picture)
        crops = [self._recogniser.alignCrop(bgr, face) for face in faces]
        # Copied one by one, for OpenCV may write the next answer where the last one stands.
        rows = [self._recogniser.feature(crop).reshape(1, WIDTH).copy() for crop in crops]
        return np.concatenate(rows) if rows else np.empty((0, WIDTH), np.float32)


def _bgr(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[..., ::-1])


def _digest(path: Path, what: str) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise ModelInvalid(f"cannot be read ({error.strerror}); expected {what} as an ONNX file", where=path) from error
