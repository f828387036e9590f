"""Trains the judges on drawings, sharp ones and ones that went through the autoencoder, and sets their thresholds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .autoencoder import to_tensor
from .dataset import Images, draw_all
from .judge import NO_FACE, READS, Gallery, Judges, Reader, Recogniser, label
from .people import TWINS, Person, known_people
from .pictures import Picture, of_anybody, of_things
from .training import fit
from .traits import GEOMETRY_VARIANCE, Identity, random_identity, random_look

_Recogniser = TypeVar("_Recogniser", bound=Recogniser)


def portraits(identities: Sequence[Identity], each: int, rng: random.Random) -> list[Picture]:
    """``each`` pictures of everybody, in any scene: person by person."""
    looks = [random_look(rng) for _ in range(len(identities) * each)]
    return [Picture("described", look.background, identities[i // each], look) for i, look in enumerate(looks)]


def strangers_of(recogniser: str, count: int) -> list[Identity]:
    """Whose faces a recogniser learns to measure: its own strangers with two twins each, and nobody who has a name."""
    rng = random.Random(f"strangers of the {recogniser}")
    strangers = [random_identity(rng) for _ in range(count // 3)]
    return [who for stranger in strangers for who in (stranger, stranger.twin(rng), stranger.twin(rng))]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes (n, 64, 64, 3) → (n, 3, 64, 64), each batch shifted, tinted, blurred by chance."""
    x = to_tensor(images)
    dy, dx = torch.randint(-3, 4, (2,), generator=generator).tolist()
    x = torch.roll(F.pad(x, (3, 3, 3, 3), mode="replicate"), (dy, dx), (2, 3))[..., 3:-3, 3:-3]
    x = x + 0.05 * torch.randn((len(x), 3, 1, 1), generator=generator)
    if float(torch.rand((), generator=generator)) < 0.4:
        size = int(torch.randint(40, 61, (), generator=generator))  # below 40, mouths are gone
        x = F.interpolate(F.interpolate(x, size=size, mode="area"), size=64, mode="bilinear")
    return x + 0.03 * torch.randn(x.shape, generator=generator)


def train_recogniser(
    recogniser: _Recogniser, images: Images, identities: Sequence[Identity], steps: int, batch: int, checkpoint: Path
) -> _Recogniser:
    """Squared error of the geometry; ``images[i]`` shows ``identities[i]``, and hardly anybody twice."""
    geometry = torch.tensor([astuple(identity.geometry) for identity in identities])
    data = torch.from_numpy(images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picks = torch.randint(len(data), (batch,), generator=generator)
        measured = recogniser.measure(augmented(data[picks], generator)) + 0.5
        error = F.mse_loss(measured, geometry[picks]) / GEOMETRY_VARIANCE
        return error, {"unexplained": float(error.detach())}

    fit(checkpoint.stem, recogniser, loss, steps=steps, learning_rate=3e-3, checkpoint=checkpoint, average=True)
    return recogniser.eval().requires_grad_(False)


def reader_pictures(count: int, rng: random.Random) -> list[Picture]:
    """Three quarters faces, one quarter things."""
    makers: tuple[Callable[[], Picture], ...] = (
        *(lambda: of_anybody(rng) for _ in range(6)),
        lambda: of_things(rng, 1),
        lambda: of_things(rng, 2),
    )
    return [rng.choice(makers)() for _ in range(count)]


def broken(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that show nothing: faces cut in pieces and thrown together, or drowned in noise."""
    n = len(images)
    pieces = images.view(n, 4, 16, 4, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, 16, 16, 16, 3)
    pieces = pieces[:, torch.randperm(16, generator=generator)]
    shuffled = pieces.view(n, 4, 4, 16, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, 64, 64, 3)
    noise = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    drowned = (0.3 * images + 0.7 * noise).byte()
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, shuffled, drowned)


def train_reader(images: Images, pictures: Sequence[Picture], steps: int, batch: int, checkpoint: Path) -> Reader:
    """Cross-entropy on every attribute that a picture shows; ``pictures[i % len]`` is what ``images[i]`` draws."""
    reader = Reader()
    labels = {key: torch.tensor([label(picture, key) for picture in pictures]) for key in READS}
    data = torch.from_numpy(images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        picks = torch.randint(len(data), (batch,), generator=generator)
        target = {key: values[picks % len(pictures)].clone() for key, values in labels.items()}
        shown = data[picks].clone()
        ruined = batch // 10
        shown[:ruined] = broken(shown[:ruined], generator)
        for key, values in target.items():
            values[:ruined] = READS["shows"].index(NO_FACE) if key == "shows" else -1
        answers = reader(augmented(shown, generator))
        losses = [
            F.cross_entropy(answers[key], values, ignore_index=-1)
            for key, values in target.items()
            if (values >= 0).any()
        ]
        return torch.stack(losses).sum(), {}

    fit("reader", reader, loss, steps=steps, learning_rate=3e-3, checkpoint=checkpoint, average=True)
    return reader.eval().requires_grad_(False)


@torch.no_grad()
def enroll(recogniser: Recogniser, identities: Sequence[Identity], each: int, seed: int) -> Tensor:
    """One template a person: the mean embedding of ``each`` drawings, (n, E), unit norm."""
    images = draw_all(portraits(identities, each, random.Random(seed)), seed)
    embedded = recogniser.embed(images)
    return F.normalize(embedded.view(len(identities), each, -1).mean(1), dim=-1)


def make_gallery(recogniser: Recogniser, people: Sequence[Person] | None = None) -> Gallery:
    """The people given, by default the 160 known ones, then nine twins of each."""
    known = known_people() if people is None else tuple(people)
    identities = [p.identity for p in known] + [twin for p in known for twin in p.twins()]
    names = [p.name for p in known] + [f"{p.name} (twin {i + 1})" for p in known for i in range(TWINS)]
    return Gallery(tuple(names), enroll(recogniser, identities, each=8, seed=11))


def introduce(judges: Judges, people: Sequence[Person]) -> Judges:
    """Judges who know these people and their twins, too: enrolled from drawings, as those in the gallery were."""
    theirs = make_gallery(judges.recogniser, people)
    embeddings = torch.cat([judges.gallery.embeddings, theirs.embeddings])
    return judges.knowing(Gallery((*judges.gallery.names, *theirs.names), embeddings))


@torch.no_grad()
def twin_thresholds(
    recogniser: Recogniser, gallery: Gallery, known: Sequence[Person], twins: int = 20, each: int = 5
) -> dict[str, float]:
    """Similarity to the person that one in a hundred, one in a thousand pictures of *new* twins exceeds."""
    rng = random.Random("impostors")
    impostors = [person.identity.twin(rng) for person in known for _ in range(twins)]
    images = draw_all(portraits(impostors, each, rng), seed=12)
    embedded = recogniser.embed(images)
    template = gallery.embeddings[: len(known)].repeat_interleave(twins * each, dim=0)
    similarity = (embedded * template).sum(-1)
    return {"far_1e-2": float(similarity.quantile(0.99)), "far_1e-3": float(similarity.quantile(0.999))}
