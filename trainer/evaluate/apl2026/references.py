"""Whom an evaluation looks for: embeddings of people, from reference pictures of each.

references/Mara Voss/1.jpg, 2.jpg, …     one folder for each person, named as in the identities file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apl_guard.errors import InvalidInput
from apl_guard.trainer.data.folders import image_files, read_image
from apl_guard.trainer.evaluate.apl2026.faces import FaceJudge, embed_faces

PAIRS_PER_FALSE_ACCEPT = 10
"""A threshold at FAR f is set on at least this many pairs over f, or there is none. A pair is a picture and
somebody else; with one picture of each the two ways round are one comparison, and count once."""
_ONE_AND_THE_SAME = 0.9999
"""A cosine that two people do not have."""
FARS = {"far_1e-2": 1e-2, "far_1e-3": 1e-3}


@dataclass(frozen=True)
class References:
    """People and their embeddings."""

    names: tuple[str, ...]
    embeddings: Tensor
    """(P, E), unit norm."""
    thresholds: dict[str, float]
    """Cosine from which a picture is taken for a person, where there were pairs enough to set it."""
    pictures: int
    """Reference pictures in all."""

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, name in enumerate(self.names, 1):
            first = seen.setdefault(" ".join(name.casefold().split()), number)
            if first != number:
                msg = f"entries {first} and {number} have the same name; every name may stand there once"
                raise InvalidInput(msg, where="references")


def read_references(folder: Path, names: Sequence[str], faces: FaceJudge, per_person: int = 1) -> References:
    """Read reference pictures, and set thresholds on pairs of different people.

    Args:
        folder: Holds a folder for each name.
        names: Whom to look for.
        faces: Who looks at the pictures.
        per_person: How many pictures to take of each, the first by name of file; all people count alike.

    Raises:
        InvalidInput: A folder is missing or has fewer pictures, a picture cannot be read or shows no face, two
            people have one name, all people look the same, or a picture looks more like somebody else than like its
            own folder.
    """
    if not folder.is_dir():
        raise InvalidInput("no such folder; expected one with a folder of images for each person", where=folder)
    people = list(dict.fromkeys(names))
    rows: list[Tensor] = []
    for number, name in enumerate(people, 1):
        paths = image_files(folder / name) if (folder / name).is_dir() else []
        if len(paths) < per_person:
            msg = f"found {len(paths)} images of entry {number}; expected at least {per_person}"
            raise InvalidInput(msg, where=folder / name)
        images = [read_image(path) for path in paths[:per_person]]
        embedded: list[Tensor] = []
        for path, image in zip(paths, images, strict=False):
            picture = np.array(image)[None]
            if not faces.has_face(picture)[0]:
                raise InvalidInput("no face is found in it; take it away or put another in its place", where=path)
            embedded.append(embed_faces(faces, picture, np.array([True]))[0])
        rows.append(torch.stack(embedded))
    each = torch.stack(rows)  # (P, K, E)
    centres = torch.nn.functional.normalize(each.mean(1), dim=-1)  # (P, E)
    if len(people) > 1 and float((centres @ centres.T).min()) > _ONE_AND_THE_SAME:
        msg = (
            f"all {len(people)} people look one and the same to {faces.name}; the recogniser tells nobody apart, or "
            "their images are copies of one"
        )
        raise InvalidInput(msg, where=folder)
    _check_folders(folder, people, each, centres)
    strangers = (each.flatten(0, 1) @ centres.T)[
        ~torch.eye(len(people), dtype=torch.bool).repeat_interleave(per_person, dim=0)
    ]
    pairs = len(strangers) // (2 if per_person == 1 else 1)
    thresholds = {
        name: float(np.quantile(strangers.double().numpy(), 1 - far))  # torch's takes no more than 2²⁴ values
        for name, far in FARS.items()
        if pairs * far >= PAIRS_PER_FALSE_ACCEPT
    }
    return References(tuple(people), centres, thresholds, len(people) * per_person)


def _check_folders(folder: Path, people: Sequence[str], each: Tensor, centres: Tensor) -> None:
    """No picture may be nearer to another person than to the other pictures of its folder: that is two people
    under one name, or one person under two."""
    per_person = each.shape[1]
    if per_person < 2:
        return
    for k, name in enumerate(people):
        others = (each[k].sum(0) - each[k]) / (per_person - 1)  # (K, E): the folder without each picture
        own = (each[k] * torch.nn.functional.normalize(others, dim=-1)).sum(-1)
        similar = each[k] @ centres.T
        similar[:, k] = -1.0
        wrong = torch.nonzero(similar.max(-1).values > own).flatten().tolist()
        if wrong:
            path = image_files(folder / name)[wrong[0]]
            msg = (
                f"looks more like entry {int(similar[wrong[0]].argmax()) + 1} than like the other images of its own "
                "folder: two people under one name, or one under two"
            )
            raise InvalidInput(msg, where=path)
