"""Who says how alike two faces are: one small protocol, which the judges of the reference world fulfil as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from apl_guard.errors import ExtraMissing, ModelInvalid
from apl_guard.trainer.evaluate.result import Pictures


class FaceJudge(Protocol):
    """Looks at pictures, bytes of shape (n, H, W, 3)."""

    @property
    def name(self) -> str:
        """What it is, for the reader of a report."""

    @property
    def digest(self) -> str:
        """Equal for two that give equal answers."""

    def embed(self, images: Pictures) -> Tensor:
        """Embeddings (n, E) of unit norm; what stands for a picture without a face says nothing."""

    def has_face(self, images: Pictures) -> npt.NDArray[np.bool_]:
        """Whether each picture shows a face, shape (n,)."""


def embed_faces(faces: FaceJudge, images: Pictures, has_face: npt.NDArray[np.bool_]) -> Tensor:
    """The embeddings of a judge, shape (n, E).

    Args:
        faces: The judge.
        images: Bytes of shape (n, H, W, 3).
        has_face: Which of them show a face to it, shape (n,).

    Raises:
        ModelInvalid: Some are not numbers, or zeros for a face: alike to nobody, which no picture may be by a fault.
    """
    embeddings = faces.embed(images)
    if not embeddings.isfinite().all():
        raise ModelInvalid("the recogniser's embeddings are not numbers; its file is damaged", where=faces.name)
    if not embeddings[np.flatnonzero(has_face)].any(dim=-1).all():
        raise ModelInvalid("the recogniser's embedding of a face is all zeros; its file is damaged", where=faces.name)
    return embeddings


def files_digest(*paths: Path) -> str:
    """SHA-256 of the contents of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def opencv() -> Any:
    """OpenCV.

    Raises:
        ExtraMissing: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ExtraMissing("eval", needs="opencv-python-headless") from error
    return cv2
