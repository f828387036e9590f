"""Faces in finished pictures, as embeddings: a recogniser, held to its promises and to a time limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apl_guard.detect.gallery import Embeddings, Recogniser, unit
from apl_guard.detect.pictures import Picture
from apl_guard.detect.worker import Worker
from apl_guard.errors import InvalidInput, OutputCheckFailed
from apl_guard.seconds import check_seconds

__all__ = ["FaceReader", "check_threshold"]


class FaceReader:
    """Reads the faces in pictures.

    Args:
        recogniser: What finds and tells faces.
        seconds: How long a caller waits for it.

    Raises:
        InvalidInput: Nobody can wait for that time.
    """

    def __init__(self, recogniser: Recogniser, seconds: float) -> None:
        self._recogniser = recogniser
        self._seconds = check_seconds(seconds, where="seconds")
        self._worker = Worker("apl-guard output")

    def read(self, pictures: Sequence[Picture], width: int | None = None) -> list[Embeddings]:
        """The faces in each picture, shape (faces, E), of unit length; (0, E) for none.

        Args:
            pictures: Each of shape (H, W, 3).
            width: E, where it is known; None takes that of the first face.

        Raises:
            OutputCheckFailed: The recogniser failed, took too long, or gave an answer that is none.
        """
        try:
            found = self._worker.run(lambda: list(self._recogniser(pictures)), self._seconds)
        except TimeoutError as error:
            raise OutputCheckFailed(f"the recogniser took more than {self._seconds:g} s") from error
        except Exception as error:
            raise OutputCheckFailed(f"the recogniser failed ({type(error).__name__})") from error
        if len(found) != len(pictures):
            raise OutputCheckFailed(f"the recogniser gave {len(found)} answers for {len(pictures)} images")
        faces: list[Embeddings] = []
        for number, each in enumerate(found):
            embeddings = np.asarray(each, dtype=np.float32)
            if embeddings.ndim == 2 and not len(embeddings):
                faces.append(embeddings)
                continue
            width = embeddings.shape[-1] if width is None and embeddings.ndim == 2 else width
            if embeddings.ndim != 2 or embeddings.shape[1] != width:
                raise OutputCheckFailed(f"an answer has shape {embeddings.shape}; expected (faces, {width or 'E'})")
            try:
                faces.append(unit(embeddings, where=f"image {number}"))
            except InvalidInput as error:
                raise OutputCheckFailed(f"the recogniser gave embeddings that are none: {error}") from error
        return faces


def check_threshold(threshold: float) -> float:
    """The same cosine similarity, if it is one.

    Raises:
        InvalidInput: It is not above −1 and at most 1.
    """
    if not -1 < threshold <= 1:
        raise InvalidInput(f"found {threshold}; expected a cosine similarity above -1, at most 1", where="threshold")
    return threshold
