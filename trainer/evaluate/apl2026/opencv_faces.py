"""YuNet finds faces and SFace tells them apart, both by OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apl_guard.errors import ModelInvalid
from apl_guard.trainer.evaluate.apl2026.faces import files_digest, opencv
from apl_guard.trainer.evaluate.result import Pictures

_SURE = 0.6
"""Score from which YuNet's answer counts as a face."""
_OVERLAP = 0.3
"""From which overlap two boxes are of one face."""
_BOXES = 5000
_WIDTH = 128
"""Of SFace's embeddings."""


class OpenCVFaces:
    """Faces by OpenCV's own `FaceDetectorYN` and `FaceRecognizerSF`; of several faces the surest counts.

    Args:
        detector: ONNX file of YuNet.
        recogniser: ONNX file of SFace.

    Raises:
        ModelInvalid: OpenCV cannot use a file.
        ExtraMissing: OpenCV is not installed.
    """

    name = "YuNet and SFace (OpenCV)"

    def __init__(self, detector: Path, recogniser: Path) -> None:
        self._cv2 = opencv()
        self.digest = files_digest(detector, recogniser)
        try:
            self._detector = self._cv2.FaceDetectorYN.create(str(detector), "", (320, 320), _SURE, _OVERLAP, _BOXES)
            self._detector.detect(np.zeros((320, 320, 3), np.uint8))
        except self._cv2.error as error:
            raise ModelInvalid("OpenCV cannot use it as YuNet", where=detector) from error
        try:
            self._recogniser = self._cv2.FaceRecognizerSF.create(str(recogniser), "")
            width = self._recogniser.feature(np.zeros((112, 112, 3), np.uint8)).size
        except self._cv2.error as error:
            raise ModelInvalid("OpenCV cannot use it as SFace", where=recogniser) from error
        if width != _WIDTH:
            msg = f"a recogniser of another architecture: embeddings of {width}; expected SFace beside YuNet, {_WIDTH}"
            raise ModelInvalid(msg, where=recogniser)

    def embed(self, images: Pictures) -> Tensor:
        """Embeddings (n, 128) of unit norm; zeros for a picture without a face."""
        rows = torch.zeros(len(images), _WIDTH)
        for k, image in enumerate(images):
            bgr = np.ascontiguousarray(image[..., ::-1])
            face = self._surest(bgr)
            if face is not None:
                rows[k] = torch.from_numpy(self._recogniser.feature(self._recogniser.alignCrop(bgr, face))).view(-1)
        return torch.nn.functional.normalize(rows, dim=-1)

    def has_face(self, images: Pictures) -> npt.NDArray[np.bool_]:
        """Whether each picture shows a face, shape (n,)."""
        return np.array([self._surest(np.ascontiguousarray(image[..., ::-1])) is not None for image in images])

    def _surest(self, bgr: Pictures) -> Any:
        """The surest face, fifteen numbers; None where there is none."""
        self._detector.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, faces = self._detector.detect(bgr)
        return None if faces is None or not len(faces) else faces[faces[:, -1].argmax()]
