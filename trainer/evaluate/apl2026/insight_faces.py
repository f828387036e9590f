"""Recognisers in the format of InsightFace: SCRFD finds faces and landmarks, ArcFace or its kin tells faces apart.

Letters: A anchors of one stride, two for each cell of its grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apl_guard.errors import ModelInvalid
from apl_guard.trainer.evaluate.apl2026.faces import opencv
from apl_guard.trainer.evaluate.result import Pictures

Floats = npt.NDArray[np.float32]

_SIDE = 640
"""Of the square that SCRFD looks at, unless its file says another."""
_SURE = 0.5
_OVERLAP = 0.4
_PER_CELL = 2
_STRIDES = (8, 16, 32)
_LANDMARKS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
"""Where eyes, nose and corners of the mouth are in the 112×112 crop that ArcFace was trained on."""


class InsightFaces:
    """Faces by SCRFD and ArcFace, as InsightFace prepares pictures for them; of several faces the largest counts.

    Args:
        detector: Session of SCRFD.
        recogniser: Session of ArcFace or its kin.
        digest: Of both files.
        detector_path, recogniser_path: What to call them in messages.

    Raises:
        ModelInvalid: A file is of another architecture, or onnxruntime cannot run it.
        ExtraMissing: OpenCV is not installed.
    """

    name = "SCRFD and ArcFace (InsightFace)"

    def __init__(self, detector: Any, recogniser: Any, digest: str, detector_path: Path, recogniser_path: Path) -> None:
        self._cv2, self._detector, self._recogniser, self.digest = opencv(), detector, recogniser, digest
        side = detector.get_inputs()[0].shape[-1]
        self._side = side if isinstance(side, int) else _SIDE
        self._detector_path, self._recogniser_path = detector_path, recogniser_path
        self._find(np.zeros((64, 64, 3), np.uint8))
        self._width = 0  # not known yet
        self._width = len(self._describe(np.zeros((1, 3, 112, 112), np.float32)))

    def embed(self, images: Pictures) -> Tensor:
        """Embeddings (n, E) of unit norm; zeros for a picture without a face."""
        rows = torch.zeros(len(images), self._width)
        for k, image in enumerate(images):
            landmarks = self._find(image)
            if landmarks is not None:
                crop = self._cv2.warpAffine(image, similarity(landmarks, _LANDMARKS), (112, 112), borderValue=0.0)
                rows[k] = torch.from_numpy(self._describe(((crop - 127.5) / 127.5).transpose(2, 0, 1)[None]))
        return torch.nn.functional.normalize(rows, dim=-1)

    def has_face(self, images: Pictures) -> npt.NDArray[np.bool_]:
        """Whether each picture shows a face, shape (n,)."""
        return np.array([self._find(image) is not None for image in images])

    def _describe(self, x: npt.NDArray[np.floating[Any]]) -> Floats:
        """The embedding (E,) of one crop (1, 3, 112, 112)."""
        rows: Floats = _run(self._recogniser, x.astype(np.float32), self._recogniser_path)[0]
        if rows.ndim != 2 or len(rows) != 1 or rows.shape[1] < 2 or self._width not in (0, rows.shape[1]):
            expected = f"(1, {self._width or 'E'})"
            msg = f"a recogniser of another architecture: gives {rows.shape} for one face; expected {expected}"
            raise ModelInvalid(msg, where=self._recogniser_path)
        row: Floats = rows[0]
        return row

    def _find(self, image: Pictures) -> Floats | None:
        """The landmarks (5, 2) of the largest face, in pixels; None where there is no face."""
        height, width = image.shape[:2]
        scale = self._side / max(height, width)
        small = self._cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
        square = np.zeros((self._side, self._side, 3), np.uint8)
        square[: small.shape[0], : small.shape[1]] = small
        x = ((square.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        outputs = _run(self._detector, x.astype(np.float32), self._detector_path)
        by_kind = {width: [o.reshape(-1, width) for o in outputs if o.shape[-1] == width] for width in (1, 4, 10)}
        cells = [_PER_CELL * (self._side // stride) ** 2 for stride in _STRIDES]
        if any(sorted(map(len, found), reverse=True) != cells for found in by_kind.values()):
            msg = "a detector of another architecture: nine outputs that are not SCRFD's scores, boxes and landmarks"
            raise ModelInvalid(msg, where=self._detector_path)
        if not all(np.isfinite(output).all() for output in outputs):
            # No face has a score that is no number: everybody would count as hidden.
            raise ModelInvalid("the detector's answers are not numbers; its file is damaged", where=self._detector_path)
        scores, boxes, points = (np.concatenate(sorted(by_kind[width], key=len, reverse=True)) for width in (1, 4, 10))
        centres, strides = grid(self._side)
        corners = np.concatenate([centres - boxes[:, :2] * strides, centres + boxes[:, 2:] * strides], axis=1)  # (A, 4)
        sure = np.flatnonzero(scores[:, 0] >= _SURE)
        if not len(sure):
            return None
        sizes = corners[sure, 2:] - corners[sure, :2]
        kept = self._cv2.dnn.NMSBoxes(
            np.concatenate([corners[sure, :2], sizes], axis=1), scores[sure, 0], _SURE, _OVERLAP
        )
        largest = max(np.asarray(kept).reshape(-1), key=lambda k: float(sizes[k].prod()))
        chosen = sure[int(largest)]
        landmarks: Floats = (centres[chosen] + points[chosen].reshape(5, 2) * strides[chosen]) / scale
        return landmarks


def _run(session: Any, x: Floats, path: Path) -> list[Any]:
    """The outputs for one picture.

    Raises:
        ModelInvalid: The file takes something else, such as several pictures at once or other numbers.
    """
    try:
        answers: list[Any] = session.run(None, {session.get_inputs()[0].name: x})
    except Exception as error:  # onnxruntime's own errors have no common type
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        msg = f"cannot be run on one image of 32-bit floats ({reason[:150]}); expected a file as InsightFace packs it"
        raise ModelInvalid(msg, where=path) from error
    return answers


def grid(side: int) -> tuple[Floats, Floats]:
    """Where the anchors are and how many pixels a unit of each is: (A, 2) and (A, 1), stride after stride.

    Example:
        >>> centres, strides = grid(64)
        >>> centres[:3].tolist(), strides[-1].tolist()
        ([[0.0, 0.0], [0.0, 0.0], [8.0, 0.0]], [32.0])
    """
    centres, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[: side // stride, : side // stride]
        cells = np.stack([x, y], axis=-1).reshape(-1, 2).repeat(_PER_CELL, axis=0) * stride
        centres.append(cells.astype(np.float32))
        strides.append(np.full((len(cells), 1), stride, np.float32))
    return np.concatenate(centres), np.concatenate(strides)


def similarity(source: Floats, target: Floats) -> Floats:
    """The turn, stretch and shift that brings points nearest to others, by least squares: shape (2, 3).

    Written with complex numbers it is z ↦ a z + b with one a and one b, so no face is mirrored.

    Example:
        >>> points = np.array([[0, 0], [2, 0], [0, 2]], np.float32)
        >>> similarity(points, points * 3 + 1).round(5).tolist()
        [[3.0, -0.0, 1.0], [0.0, 3.0, 1.0]]
    """
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    away = z - z.mean()
    a = (away.conj() * (w - w.mean())).sum() / max(float((np.abs(away) ** 2).sum()), 1e-9)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], np.float32)
