"""A gallery: whom the output check looks for, each by the embedding of a face.

Embeddings of faces are biometric data: keep the file as you keep passwords, and name people by ids of your own. What
an entry is called leaves the guard in `OutputWithheld` alone, never in a record, a metric or a message.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apl_guard.detect.pictures import Picture, read_pictures
from apl_guard.errors import InvalidInput, OutputCheckFailed
from apl_guard.storage import write_file

__all__ = ["Embeddings", "Gallery", "Recogniser", "unit"]

Embeddings = npt.NDArray[np.float32]
"""Shape (n, E); of unit length where nothing else is said."""
_FORMAT = "apl-guard gallery 1"
_ROUNDING = 1e-5
"""How far from 1 the length of a unit embedding may be."""


class Recogniser(Protocol):
    """Finds the faces in pictures and tells each by an embedding: near for one person, far for two."""

    @property
    def name(self) -> str:
        """Its kind and version. Embeddings of one recogniser mean nothing to another."""

    def __call__(self, pictures: Sequence[Picture]) -> Sequence[Embeddings]:
        """The embeddings of the faces in each picture, shape (faces, E), of any length but zero; (0, E) for none."""


class Gallery:
    """People, each by one embedding.

    Args:
        entries: What each is called: ids of the platform, no two alike.
        embeddings: One for each, shape (n, E), of any length but zero.
        recogniser: Name of the recogniser that they come from.

    Raises:
        InvalidInput: An entry is there twice, or the embeddings do not fit the entries.

    Example:
        >>> gallery = Gallery(["case 17"], np.array([[3.0, 4.0]]), "demo 1")
        >>> print(gallery.embeddings)
        [[0.6 0.8]]
    """

    def __init__(self, entries: Sequence[str], embeddings: npt.ArrayLike, recogniser: str) -> None:
        self.entries = tuple(entries)
        self.recogniser = recogniser
        if len(set(self.entries)) < len(self.entries):
            raise InvalidInput("an entry is there twice; expected one for each person", where="gallery")
        self.embeddings = unit(np.asarray(embeddings, dtype=np.float32), where="gallery")
        if not self.entries or len(self.embeddings) != len(self.entries):
            found = f"{len(self.embeddings)} embeddings for {len(self.entries)} entries"
            raise InvalidInput(f"found {found}; expected one for each, and at least one", where="gallery")
        digest = hashlib.sha256(json.dumps([_FORMAT, recogniser, self.entries]).encode())
        digest.update(self.embeddings.tobytes())
        self.digest = digest.hexdigest()
        """Equal exactly when the content is equal."""

    def __repr__(self) -> str:
        return f"Gallery({len(self.entries)} entries, recogniser={self.recogniser!r})"

    @classmethod
    def enroll(
        cls, recogniser: Recogniser, people: Mapping[str, Sequence[Any]], *, least_alike: float = 0.2
    ) -> Gallery:
        """Make a gallery from images: of each person, the mean of the embeddings.

        Args:
            recogniser: Finds and recognises faces.
            people: Entry → images, each of this person alone, in any type that `read_pictures` reads.
            least_alike: The lowest cosine similarity of an image to the mean of the person's other images.

        Raises:
            InvalidInput: A person has no image, an image not exactly one face, or an entry holds several people.
        """
        templates = []
        for entry, given in people.items():
            if not len(given):
                raise InvalidInput("no images; expected at least one", where=f"entry '{entry}'")
            try:
                pictures = read_pictures(given)
            except OutputCheckFailed as error:
                raise InvalidInput(str(error), where=f"entry '{entry}'") from error
            faces = list(recogniser(pictures))
            if len(faces) != len(pictures):
                raise InvalidInput(
                    f"the recogniser gave {len(faces)} answers for {len(pictures)} images", where=f"entry '{entry}'"
                )
            for number, found in enumerate(faces, 1):
                if len(found) != 1:
                    raise InvalidInput(
                        f"image {number} has {len(found)} faces; expected exactly one", where=f"entry '{entry}'"
                    )
            own = unit(np.concatenate(faces), where=f"entry '{entry}'")
            for number in range(len(own)) if len(own) > 1 else ():
                others = unit(np.delete(own, number, 0).mean(0, keepdims=True), where=f"entry '{entry}'")[0]
                if (similarity := float(own[number] @ others)) < least_alike:
                    raise InvalidInput(
                        f"image {number + 1} is like the others by {similarity:.2f}, expected at least "
                        f"{least_alike:.2f}: are there two people under one name?",
                        where=f"entry '{entry}'",
                    )
            templates.append(own.mean(0))
        return cls(tuple(people), np.array(templates), recogniser.name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, for its owner alone to read; whole or not at all.

        Raises:
            StorageFailed: It cannot be written.
        """
        from safetensors.numpy import save

        header = {"format": _FORMAT, "recogniser": self.recogniser, "entries": json.dumps(self.entries)}
        write_file(Path(path), save({"embeddings": self.embeddings}, header), private=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gallery:
        """Read what `save` wrote.

        Raises:
            InvalidInput: There is no such file, or it is no gallery.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if not Path(path).is_file():  # a pipe would be waited for
                raise FileNotFoundError(errno.ENOENT, "there is no such file")
            with safe_open(path, "np") as file:
                header, embeddings = file.metadata() or {}, file.get_tensor("embeddings")
            if header.get("format") != _FORMAT:
                raise InvalidInput("not a gallery of apl-guard; expected what `Gallery.save` wrote", where=Path(path))
            return cls(json.loads(header["entries"]), embeddings, header["recogniser"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InvalidInput(f"cannot be read as a gallery ({reason})", where=Path(path)) from error


def unit(embeddings: npt.NDArray[np.float32], where: str) -> Embeddings:
    """Embeddings of unit length. Those that have it already stay as they are, bit for bit, and so does their digest.

    Raises:
        InvalidInput: They are no rows of finite numbers, or one has no length.
    """
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        found = f"shape {embeddings.shape}" if embeddings.ndim != 2 else "values that are not finite"
        raise InvalidInput(f"found {found}; expected embeddings of shape (n, E), all finite", where=where)
    with np.errstate(over="ignore"):
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not ((length > 0) & np.isfinite(length)).all():
        raise InvalidInput("found an embedding of length 0, or of one beyond all bounds", where=where)
    length[np.abs(length - 1) < _ROUNDING] = 1  # dividing again would change the last bits
    normal: Embeddings = (embeddings / length).astype(np.float32)
    return normal
