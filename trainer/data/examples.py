"""What a prefix is trained on: latents with their prompts, made by the model itself or taken from folders.

Letters: M examples; latents (C, H, W).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apl_guard.errors import IdentitiesInvalid, InvalidInput
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.folders import captioned_images, captions_in, encode_images, read_prompts
from apl_guard.trainer.data.generation import self_generate
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.data.seeds import BATCHES, GENERIC_IMAGES, IDENTITY_IMAGES, seed_of


@dataclass(frozen=True)
class Examples:
    """M examples of one half of the data."""

    prompts: tuple[str, ...]
    """The prompts as a user would write them."""
    neutrals: tuple[str, ...]
    """The prompts whose answer is the target; the same as `prompts` in generic data."""
    latents: Tensor
    """Clean latents in the scale of the denoiser, shape (M, C, H, W), float32."""
    people: Tensor
    """Index of the person shown, shape (M,); −1 for nobody."""

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, keep: Sequence[int]) -> Examples:
        """The examples with these indices."""
        index = torch.tensor(list(keep), dtype=torch.long)
        prompts, neutrals = (tuple(texts[i] for i in keep) for texts in (self.prompts, self.neutrals))
        return Examples(prompts, neutrals, self.latents[index], self.people[index])


@dataclass(frozen=True)
class Data:
    """Both halves, each with the part that is held aside for the periodic evaluation."""

    identity: Examples
    generic: Examples
    held_identity: Examples
    held_generic: Examples
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Equal exactly when prompts and latents are equal."""
        digest = hashlib.sha256()
        for part in (self.identity, self.generic, self.held_identity, self.held_generic):
            digest.update(json.dumps([part.prompts, part.neutrals]).encode())
            digest.update(part.latents.numpy().tobytes())
        return digest.hexdigest()


def prepare(
    pipe: Any,
    config: TrainConfig,
    people: Identities,
    generic: Path | Sequence[str],
    progress: bool = True,
) -> Data:
    """Make or read all examples.

    Args:
        pipe: The model.
        config: Counts, seeds and the settings of self-generation.
        people: Who is to be hidden.
        generic: Prompts, a text file with one prompt a line, or a folder of images with captions.
        progress: Whether to draw a progress bar.

    Raises:
        IdentitiesInvalid: A neutral text or a person's pictures are missing.
        InvalidInput: There are no generic prompts, or a folder holds no images with captions.
        StorageFailed: The cache of latents cannot be written.
    """
    identity = _identity_examples(pipe, config, people, progress)
    shared = _generic_examples(pipe, config, generic, progress)
    n_people = config.people_held_aside(len(people.identities))
    first_held = len(people.identities) - n_people
    is_held = [person >= first_held for person in identity.people.tolist()]
    n_generic = config.generic_held_aside(len(shared))
    trained = shared.take(range(len(shared) - n_generic))
    # Where there is too little to hold anything aside, the evaluation looks at trained examples, new noise.
    return Data(
        identity=identity.take([k for k, held in enumerate(is_held) if not held]),
        generic=trained,
        held_identity=identity.take([k for k, held in enumerate(is_held) if held]) if n_people else identity,
        held_generic=shared.take(range(len(shared) - n_generic, len(shared))) if n_generic else trained,
        names=tuple(i.name for i in people.identities),
    )


def stand_in_for(person: int, people: Identities, config: TrainConfig) -> str:
    """What replaces the name of one person in the prompts of the targets.

    Raises:
        IdentitiesInvalid: The file does not say it.
    """
    is_described = int((person + 1) * config.attributes_share) > int(person * config.attributes_share)
    return people.neutral(person, "attributes" if is_described else config.neutral)


def check_people(people: Identities, config: TrainConfig) -> None:
    """Read of the people what can be read without the model, which takes minutes to open.

    Raises:
        IdentitiesInvalid: A neutral text or a person's images are missing, or a caption does not hold the name.
        InvalidInput: A folder is missing, or captions cannot be read.
    """
    for person in range(len(people.identities)):
        stand_in_for(person, people, config)
        _own_pictures(person, people)


def _own_pictures(person: int, people: Identities) -> list[tuple[Path, str]]:
    """The images that the file names of one person, with their captions; none where it names none.

    Raises:
        IdentitiesInvalid: The folder holds no images, or a caption does not hold the name.
        InvalidInput: The folder is missing, or captions cannot be read.
    """
    identity = people.identities[person]
    if identity.images is None:
        return []
    pictures = captioned_images(identity.images, default=people.templates[0].replace("{name}", identity.name))
    if not pictures:
        raise IdentitiesInvalid("no images in it", where=identity.images)
    for path, text in pictures:
        if identity.name not in text:
            msg = f"its caption does not hold the name of entry {person + 1}; each must, to be made neutral"
            raise IdentitiesInvalid(msg, where=path)
    return pictures


def _identity_examples(pipe: Any, config: TrainConfig, people: Identities, progress: bool) -> Examples:
    rng = random.Random(config.seed)
    prompts: list[str] = []
    neutrals: list[str] = []
    shown: list[str] = []  # what the self-generated image is made from
    persons: list[int] = []
    given: list[Examples] = []
    for person, identity in enumerate(people.identities):
        stand_in = stand_in_for(person, people, config)
        if identity.images is not None:
            pictures = _own_pictures(person, people)
            texts = tuple(text for _, text in pictures)
            latents = encode_images(pipe, [path for path, _ in pictures], config)
            neutral_texts = tuple(text.replace(identity.name, stand_in) for text in texts)
            given.append(Examples(texts, neutral_texts, latents, torch.full((len(texts),), person)))
            continue
        templates = rng.sample(people.templates, len(people.templates))
        for k in range(config.images_per_identity):
            template = templates[k % len(templates)]
            prompts.append(template.replace("{name}", identity.name))
            neutrals.append(template.replace("{name}", stand_in))
            of_name = config.identity_images == "named" or (config.identity_images == "both" and k % 2 == 0)
            shown.append(prompts[-1] if of_name else neutrals[-1])
            persons.append(person)
    if prompts:
        latents = self_generate(pipe, shown, config, IDENTITY_IMAGES, progress=progress, label="identity images")
        given.append(Examples(tuple(prompts), tuple(neutrals), latents, torch.tensor(persons)))
    return Examples(
        prompts=tuple(text for part in given for text in part.prompts),
        neutrals=tuple(text for part in given for text in part.neutrals),
        latents=torch.cat([part.latents for part in given]),
        people=torch.cat([part.people for part in given]),
    )


def _generic_examples(pipe: Any, config: TrainConfig, generic: Path | Sequence[str], progress: bool) -> Examples:
    if isinstance(generic, Path) and generic.is_dir():
        pictures = captions_in(generic)
        pictures = random.Random(config.seed).sample(pictures, min(config.generic_count, len(pictures)))
        texts = tuple(text for _, text in pictures)
        latents = encode_images(pipe, [path for path, _ in pictures], config)
        return Examples(texts, texts, latents, torch.full((len(texts),), -1))
    texts = tuple(read_prompts(generic) if isinstance(generic, Path) else generic)
    if not texts:
        raise InvalidInput("the list of generic prompts is empty; expected at least one", where="generic")
    texts = tuple(random.Random(config.seed).sample(texts, min(config.generic_count, len(texts))))
    latents = self_generate(pipe, texts, config, GENERIC_IMAGES, progress=progress, label="generic images")
    return Examples(texts, texts, latents, torch.full((len(texts),), -1))


@dataclass(frozen=True)
class Batch:
    """What one step looks at: the first rows are identity examples, the rest generic ones."""

    identity: Tensor
    """Indices into the identity examples, shape (B₁,)."""
    generic: Tensor
    """Indices into the generic examples, shape (B₂,)."""
    t: Tensor
    """Noise levels, shape (B,)."""
    noise: Tensor
    """Shape (B, C, H, W)."""


def draw_batch(data: Data, config: TrainConfig, index: int, n_levels: int, pick: Tensor | None = None) -> Batch:
    """Draw the batch of one step. It depends on nothing but the arguments, so a resumed run draws the same.

    Args:
        data: The examples.
        config: Batch sizes, noise levels and seed.
        index: Number of the batch.
        n_levels: Number of noise levels of the model's schedule.
        pick: How likely each identity example is, shape (M,); None makes all alike.
    """
    rng = torch.Generator().manual_seed(seed_of(config.seed, BATCHES, index))
    likely = torch.ones(len(data.identity)) if pick is None else pick
    identity = torch.multinomial(likely, config.identity_batch, replacement=True, generator=rng)
    generic = torch.randint(len(data.generic), (config.generic_batch,), generator=rng)
    size = config.identity_batch + config.generic_batch
    low = int(config.timestep_low * n_levels)
    high = max(low + 1, int(config.timestep_high * n_levels))
    t = torch.randint(low, high, (size,), generator=rng)
    noise = torch.randn((size, *data.identity.latents.shape[1:]), generator=rng)
    return Batch(identity, generic, t, noise)
