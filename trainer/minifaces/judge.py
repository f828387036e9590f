"""The judges: networks that look at a finished picture and say who it is, whether there is a face, and what it shows.

The *recogniser* measures leaks.  The *guard's recogniser* is another architecture, trained on other people: whatever
the guard itself may look through must not be the judge.  The *reader* reads attributes and finds faces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .autoencoder import to_tensor
from .convnet import conv_trunk
from .dataset import Images
from .objects import OBJECTS
from .pictures import Picture
from .traits import BEARDS, COLOURS, EXPRESSIONS, GEOMETRY, HAIR_COLOURS, HAIR_STYLES, SEXES, SKINS

NONE: Final = "none"
NO_FACE: Final = "nothing"
READS: Final[dict[str, tuple[str, ...]]] = {
    "shows": ("face", "object", "pair", NO_FACE),
    "sex": SEXES,
    "skin": tuple(SKINS),
    "hair_style": HAIR_STYLES,
    "hair_colour": (*HAIR_COLOURS, NONE),
    "beard": BEARDS,
    "glasses": ("glasses", NONE),
    "expression": EXPRESSIONS,
    "clothing": tuple(COLOURS),
    "background": tuple(COLOURS),
    "colour": tuple(COLOURS),
    "object": OBJECTS,
    "left_colour": tuple(COLOURS),
    "left_object": OBJECTS,
    "right_colour": tuple(COLOURS),
    "right_object": OBJECTS,
}
"""What the reader reads, and the values that it can say."""


def label(picture: Picture, key: str) -> int:
    """Index in `READS` of the value that a picture shows, −1 where the question does not arise."""
    if key == "shows":
        return READS[key].index(picture.kind if picture.kind in ("object", "pair") else "face")
    value = picture.labels().get(key)
    return -1 if value is None else READS[key].index(value)


class Recogniser(nn.Module):
    """Pictures → embeddings of unit length: near for one person, far for two, however alike.

    The judge *measures* faces: its embedding is the estimated geometry, from the middle of its range.  What cannot be
    seen in a picture is estimated at the middle and counts for nothing.  Attributes, which twins share, are no part.
    """

    widths: ClassVar[tuple[int, ...]] = (32, 48, 96, 128)
    kernel: ClassVar[int] = 3

    def __init__(self) -> None:
        super().__init__()
        self.measure = conv_trunk(self.widths, GEOMETRY, kernel=self.kernel)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 64, 64) → (n, GEOMETRY)."""
        return nn.functional.normalize(self.measure(images), dim=-1)

    @torch.no_grad()
    def embed(self, images: Images) -> Tensor:
        """Bytes (n, 64, 64, 3) → (n, GEOMETRY), a batch at a time."""
        return torch.cat([self(to_tensor(part)) for part in _batches(images)])


class GuardRecogniser(Recogniser):
    """The same for what the guard itself may look through: another architecture, taught on other people."""

    widths = (24, 40, 72, 112)
    kernel = 5


class Reader(nn.Module):
    """Pictures → one answer for each entry of `READS`."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv_trunk((24, 48, 80, 96), 128), nn.ReLU())
        self.heads = nn.ModuleDict({key: nn.Linear(128, len(values)) for key, values in READS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(n, 3, 64, 64) → key → logits (n, number of values)."""
        features = self.trunk(images)
        return {key: head(features) for key, head in self.heads.items()}


@dataclass(frozen=True)
class Gallery:
    """Everybody whom the closed-set judge may name: the known people first, then nine twins of each."""

    names: tuple[str, ...]
    embeddings: Tensor
    """(1600, E), unit norm."""

    def rows(self, people: Iterable[str]) -> list[int]:
        """Where people stand. Whoever is introduced later may have the name of somebody here: the first counts.

        Raises:
            KeyError: One of them is not there.
        """
        known = {name: row for row, name in reversed(list(enumerate(self.names)))}
        return [known[name] for name in people]


class Judges:
    """All judges, ready to look at pictures; every method takes bytes of shape (n, 64, 64, 3)."""

    def __init__(
        self, recogniser: Recogniser, reader: Reader, gallery: Gallery, thresholds: Mapping[str, float]
    ) -> None:
        self.recogniser = recogniser.eval().requires_grad_(False)
        """The network that measures leaks."""
        self.reader = reader.eval().requires_grad_(False)
        self.gallery = gallery
        self.thresholds = dict(thresholds)
        """Cosine similarities above which a picture is taken for a person, set on twin impostors."""

    name: Final = "judges of the reference world"

    @property
    def digest(self) -> str:
        """SHA-256 of all weights, of the gallery and of the thresholds: equal where every answer is."""
        digest = hashlib.sha256(json.dumps([self.gallery.names, self.thresholds], sort_keys=True).encode())
        for tensor in (*self.recogniser.state_dict().values(), *self.reader.state_dict().values()):
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(self.gallery.embeddings.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def knowing(self, gallery: Gallery) -> Judges:
        """The same judges with another gallery; their thresholds stay what they are."""
        return Judges(self.recogniser, self.reader, gallery, self.thresholds)

    def embed(self, images: Images) -> Tensor:
        """Embeddings (n, E) of unit norm, by the recogniser that measures leaks."""
        return self.recogniser.embed(images)

    @torch.no_grad()
    def features(self, images: Images) -> Tensor:
        """The reader's features (n, 128): the space of the Fréchet distance."""
        return torch.cat([self.reader.trunk(to_tensor(part)) for part in _batches(images)])

    @torch.no_grad()
    def attributes(self, images: Images) -> list[dict[str, str]]:
        """What the reader reads: one value for every key of `READS`."""
        answers: list[dict[str, str]] = []
        for part in _batches(images):
            logits = self.reader(to_tensor(part))
            chosen = {key: value.argmax(-1).tolist() for key, value in logits.items()}
            answers += [{key: READS[key][chosen[key][i]] for key in READS} for i in range(len(part))]
        return answers

    def has_face(self, images: Images) -> npt.NDArray[np.bool_]:
        """Whether each picture shows a face."""
        return np.array([answer["shows"] == "face" for answer in self.attributes(images)], dtype=np.bool_)


def _batches(images: Images, size: int = 256) -> list[Images]:
    return [images[i : i + size] for i in range(0, len(images), size)]


def save_judges(
    path: Path,
    judge: Recogniser,
    guard: GuardRecogniser,
    reader: Reader,
    gallery: Gallery,
    thresholds: Mapping[str, float],
) -> None:
    """All of them in one fp16 safetensors file."""
    tensors = {"gallery": gallery.embeddings.half()}
    for name, module in (("judge", judge), ("guard", guard), ("reader", reader)):
        for key, value in module.state_dict().items():
            tensors[f"{name}.{key}"] = value.half().contiguous() if value.is_floating_point() else value
    metadata = {"thresholds": json.dumps(dict(thresholds)), "names": json.dumps(gallery.names)}
    save_file(tensors, path, metadata)


def _part(tensors: Mapping[str, Tensor], name: str, module: nn.Module) -> None:
    prefix = f"{name}."
    module.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def load_judges(path: Path) -> Judges:
    """The judges of a file written by `save_judges`."""
    tensors, metadata = _read(path)
    recogniser, reader = Recogniser(), Reader()
    _part(tensors, "judge", recogniser)
    _part(tensors, "reader", reader)
    names = tuple(json.loads(metadata["names"]))
    gallery = Gallery(names, nn.functional.normalize(tensors["gallery"].float(), dim=-1))
    return Judges(recogniser, reader, gallery, json.loads(metadata["thresholds"]))


def load_guard_recogniser(path: Path) -> GuardRecogniser:
    """The second recogniser, for what the guard itself may look through."""
    tensors, _ = _read(path)
    recogniser = GuardRecogniser()
    _part(tensors, "guard", recogniser)
    return recogniser.eval().requires_grad_(False)
