"""Looks at finished pictures for people of a gallery that the platform supplies, before they are released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apl_guard.detect.faces import FaceReader, check_threshold
from apl_guard.detect.gallery import Gallery, Recogniser
from apl_guard.detect.pictures import Picture, read_pictures
from apl_guard.errors import InvalidInput, OutputCheckFailed

__all__ = ["Looked", "OutputCheck", "Sighting"]


@dataclass(frozen=True)
class Sighting:
    """Somebody of the gallery in a picture: the one who is most alike."""

    picture: int
    """Its number in the call, from 0."""
    entry: str
    similarity: float


@dataclass(frozen=True)
class Looked:
    """What was seen in the pictures of a call."""

    faces: tuple[int, ...]
    """How many in each picture."""
    highest: float | None
    """The greatest similarity of a face to an entry; None where there is no face."""
    sightings: tuple[Sighting, ...]
    """At most one for each picture."""


class OutputCheck:
    """Compares every face in finished images with a gallery. An image with a match is not released.

    The prefix hides whom a prompt brings in; this sees who is in the image, however they got there. It protects the
    people in the gallery and nobody else. The recogniser errs both ways: set the threshold on images of people who
    are not in the gallery, by the share of them that may be withheld.

    Args:
        recogniser: Finds and recognises faces. Use another one than the one that measures leaks.
        gallery: Whom to look for.
        threshold: The cosine similarity from which a face counts as an entry's.
        seconds: How long a call waits for the recogniser. After that, the check has failed.

    Raises:
        InvalidInput: The gallery comes from another recogniser, or the threshold is out of range.

    Example:
        >>> import numpy as np
        >>> class Brightness:
        ...     name = "brightness 1"
        ...     def __call__(self, pictures):
        ...         return [np.array([[p.mean(), 255 - p.mean()]]) for p in pictures]
        >>> white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
        >>> check = OutputCheck(Brightness(), Gallery.enroll(Brightness(), {"case 17": [white]}), threshold=0.9)
        >>> check.look([black, white]).sightings
        (Sighting(picture=1, entry='case 17', similarity=1.0),)
    """

    def __init__(self, recogniser: Recogniser, gallery: Gallery, threshold: float, *, seconds: float = 10.0) -> None:
        if recogniser.name != gallery.recogniser:
            raise InvalidInput(
                f"made with recogniser '{gallery.recogniser}', found '{recogniser.name}'; enroll its people anew",
                where="gallery",
            )
        self.gallery = gallery
        self.threshold = check_threshold(threshold)
        self._faces = FaceReader(recogniser, seconds)

    def __repr__(self) -> str:
        return f"OutputCheck({self.gallery!r}, threshold={self.threshold})"

    def look_at(self, output: object, images: int) -> Looked:
        """Look at what a pipe returned.

        Args:
            output: In any type that `read_pictures` reads.
            images: How many pictures there must be.

        Raises:
            OutputCheckFailed: They cannot be read or looked at.
        """
        pictures = read_pictures(output)
        if len(pictures) != images:
            raise OutputCheckFailed(f"found {len(pictures)} images; the backend says {images}")
        return self.look(pictures)

    def record(self, looked: Looked | None, error: Exception | None) -> dict[str, Any] | None:
        """What of a look goes on record: never who was seen.

        Args:
            looked: What was seen, or None.
            error: Why nothing was, or None where nobody looked.
        """
        if looked is None and error is None:
            return None
        by = {
            "recogniser": self.gallery.recogniser,
            "gallery_digest": self.gallery.digest,
            "threshold": self.threshold,
        }
        if looked is None:
            return by | {"failed": type(error).__name__}
        highest = None if looked.highest is None else round(looked.highest, 6)
        return by | {"faces": list(looked.faces), "matches": len(looked.sightings), "highest": highest}

    def look(self, pictures: Sequence[Picture]) -> Looked:
        """Look at pictures.

        Raises:
            OutputCheckFailed: The recogniser failed, took too long, or gave an answer that is none.
        """
        faces: list[int] = []
        sightings: list[Sighting] = []
        highest: list[float] = []
        for number, found in enumerate(self._faces.read(pictures, width=self.gallery.embeddings.shape[1])):
            faces.append(len(found))
            if not len(found):
                continue
            similarity = found @ self.gallery.embeddings.T
            entry = int(similarity.max(0).argmax())
            highest.append(float(similarity.max()))
            if highest[-1] >= self.threshold:
                sightings.append(Sighting(number, self.gallery.entries[entry], highest[-1]))
        return Looked(tuple(faces), max(highest, default=None), tuple(sightings))
