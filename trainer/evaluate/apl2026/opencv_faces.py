"""YuNet finds faces and SFace tells them apart, both by OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apl_guard.detect import opencv_faces
from apl_guard.trainer.evaluate.apl2026.faces import files_digest, opencv
from apl_guard.trainer.evaluate.result import Pictures


class OpenCVFaces:
    """The recogniser of the output check, here with one face for each picture: of several the surest counts.

    Args:
        detector: ONNX file of YuNet.
        recogniser: ONNX file of SFace.

    Raises:
        ModelInvalid: OpenCV cannot use a file.
        ExtraMissing: OpenCV is not installed.
    """

    name = "YuNet and SFace (OpenCV)"

    def __init__(self, detector: Path, recogniser: Path) -> None:
        opencv()
        self.digest = files_digest(detector, recogniser)
        self._faces = opencv_faces.OpenCVFaces(detector, recogniser)

    def embed(self, images: Pictures) -> Tensor:
        """Embeddings (n, 128) of unit norm; zeros for a picture without a face."""
        rows = torch.zeros(len(images), opencv_faces.WIDTH)
        for k, image in enumerate(images):
            for row in self._faces.embed(image, self._surest(image)):
                rows[k] = torch.from_numpy(row)
        return torch.nn.functional.normalize(rows, dim=-1)

    def has_face(self, images: Pictures) -> npt.NDArray[np.bool_]:
        """Whether each picture shows a face, shape (n,)."""
        return np.array([bool(self._surest(image)) for image in images])

    def _surest(self, image: Pictures) -> list[Any]:
        """The surest face, or none."""
        return sorted(self._faces.find(image), key=lambda face: -float(face[-1]))[:1]
