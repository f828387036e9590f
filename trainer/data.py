"""What a prefix is trained on: latents with their prompts, made by the model itself or taken from folders.

Letters: M examples; latents (C, H, W).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from apl_guard.errors import IdentitiesInvalid, InvalidInput
from apl_guard.storage import write_file
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.identities import Identities
from apl_guard.trainer.pipeline import model_digest, unet_precision

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Examples:
    """M examples of one half of the data."""

    prompts: tuple[str, ...]
    """The prompts as a user would write them."""
    neutrals: tuple[str, ...]
    """The prompts whose answer is the target; the same as `prompts` in generic data."""
    latents: Tensor
    """Clean latents in the UNet's scale, shape (M, C, H, W), float32."""
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
    n_people = min(config.held_aside_identities, len(people.identities) // 4)
    first_held = len(people.identities) - n_people
    is_held = [person >= first_held for person in identity.people.tolist()]
    n_generic = min(config.held_aside_generic, len(shared) // 4)
    trained = shared.take(range(len(shared) - n_generic))
    # Where there is too little to hold anything aside, the evaluation looks at trained examples, new noise.
    return Data(
        identity=identity.take([k for k, held in enumerate(is_held) if not held]),
        generic=trained,
        held_identity=identity.take([k for k, held in enumerate(is_held) if held]) if n_people else identity,
        held_generic=shared.take(range(len(shared) - n_generic, len(shared))) if n_generic else trained,
        names=tuple(i.name for i in people.identities),
    )


def _identity_examples(pipe: Any, config: TrainConfig, people: Identities, progress: bool) -> Examples:
    rng = random.Random(config.seed)
    prompts: list[str] = []
    neutrals: list[str] = []
    shown: list[str] = []  # what the self-generated image is made from
    persons: list[int] = []
    given: list[Examples] = []
    for person, identity in enumerate(people.identities):
        stand_in = people.neutral(person, config.neutral)
        if identity.images is not None:
            pictures = _captioned(
                identity.images, default=people.templates[0].replace("{name}", identity.name)
            )
            if not pictures:
                raise IdentitiesInvalid("no images in it", where=identity.images)
            texts = tuple(text for _, text in pictures)
            if any(identity.name not in text for text in texts):
                msg = f"a caption does not hold the name of entry {person + 1}; each must, to be made neutral"
                raise IdentitiesInvalid(msg, where=identity.images)
            latents = _encode_images(pipe, [path for path, _ in pictures], config.sampling_batch)
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
        latents = self_generate(pipe, shown, config, stream=0, progress=progress, label="identity images")
        given.append(Examples(tuple(prompts), tuple(neutrals), latents, torch.tensor(persons)))
    return Examples(
        prompts=tuple(text for part in given for text in part.prompts),
        neutrals=tuple(text for part in given for text in part.neutrals),
        latents=torch.cat([part.latents for part in given]),
        people=torch.cat([part.people for part in given]),
    )


def _generic_examples(
    pipe: Any, config: TrainConfig, generic: Path | Sequence[str], progress: bool
) -> Examples:
    if isinstance(generic, Path) and generic.is_dir():
        pictures = _captioned(generic, default=None)
        if not pictures:
            msg = "no images with captions (NAME.txt beside NAME.png, or metadata.jsonl) in it"
            raise InvalidInput(msg, where=generic)
        pictures = random.Random(config.seed).sample(pictures, min(config.generic_count, len(pictures)))
        texts = tuple(text for _, text in pictures)
        latents = _encode_images(pipe, [path for path, _ in pictures], config.sampling_batch)
        return Examples(texts, texts, latents, torch.full((len(texts),), -1))
    texts = tuple(read_prompts(generic) if isinstance(generic, Path) else generic)
    if not texts:
        raise InvalidInput("the list of generic prompts is empty; expected at least one", where="generic")
    texts = tuple(random.Random(config.seed).sample(texts, min(config.generic_count, len(texts))))
    latents = self_generate(pipe, texts, config, stream=1, progress=progress, label="generic images")
    return Examples(texts, texts, latents, torch.full((len(texts),), -1))


def read_prompts(path: Path) -> list[str]:
    """Read a text file with one prompt a line; empty lines do not count.

    Raises:
        InvalidInput: The file is missing, is not text, or has no prompt in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the prompts cannot be read: {error}", where=path) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidInput("no prompt in it; expected one a line", where=path)
    return prompts


def _captioned(folder: Path, default: str | None) -> list[tuple[Path, str]]:
    """The images of a folder with their captions, from metadata.jsonl or from text files beside them."""
    if not folder.is_dir():
        raise InvalidInput("no such folder; expected one with images", where=folder)
    captions: dict[str, str] = {}
    index = folder / "metadata.jsonl"
    if index.is_file():
        for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                captions[entry["file_name"]] = entry["text"]
            except (ValueError, KeyError, TypeError) as error:
                msg = f"line {number} is not an object with 'file_name' and 'text'"
                raise InvalidInput(msg, where=index) from error
    found: list[tuple[Path, str]] = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES):
        beside = path.with_suffix(".txt")
        text = captions.get(path.name) or (
            beside.read_text(encoding="utf-8").strip() if beside.is_file() else default
        )
        if text:
            found.append((path, text))
    return found


@torch.no_grad()
def _encode_images(pipe: Any, paths: Sequence[Path], batch: int) -> Tensor:
    """Latents of pictures, cut square from the middle and scaled to the model's own size: (M, C, H, W)."""
    from PIL import Image, UnidentifiedImageError

    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    latents: list[Tensor] = []
    for start in range(0, len(paths), batch):
        pixels: list[Tensor] = []
        for path in paths[start : start + batch]:
            try:
                with Image.open(path) as opened:
                    image = opened.convert("RGB")
            except (OSError, UnidentifiedImageError) as error:
                raise InvalidInput(f"not an image that can be read: {error}", where=path) from error
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side)).resize(
                (size, size), Image.Resampling.LANCZOS
            )
            pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1)
        x = torch.stack(pixels).to(pipe.vae.device)
        latents.append((pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor).float().cpu())
    return torch.cat(latents)


def cache_folder() -> Path:
    """Where latents are kept: `APL_GUARD_CACHE`, or in the user's cache folder."""
    if configured := os.environ.get("APL_GUARD_CACHE"):
        return Path(configured) / "latents"
    from platformdirs import user_cache_path

    return user_cache_path("apl-guard", appauthor=False) / "latents"


def self_generate(
    pipe: Any, prompts: Sequence[str], config: TrainConfig, stream: int, progress: bool, label: str
) -> Tensor:
    """Let the model draw prompts, and keep the latents of each batch on disk.

    A run that was killed goes on at the batch it had reached; nothing is drawn twice.

    Args:
        pipe: The model.
        prompts: M texts.
        config: Steps, guidance, batch and seed.
        stream: Which series of seeds; equal series with equal prompts give equal latents.
        progress: Whether to draw a progress bar.
        label: What the progress bar says.

    Returns:
        Shape (M, C, H, W), float32, on the CPU.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    folder = cache_folder()
    dtype = unet_precision(pipe.unet.device, config.precision)
    settings = [
        config.sampling_steps,
        config.guidance_scale,
        config.seed,
        stream,
        str(dtype),
        str(pipe.unet.device),
    ]
    model = model_digest(pipe)
    latents: list[Tensor] = []
    with tqdm(total=len(prompts), desc=label, unit="img", disable=not progress) as bar:
        for start in range(0, len(prompts), config.sampling_batch):
            texts = list(prompts[start : start + config.sampling_batch])
            key = hashlib.sha256(json.dumps([model, settings, start, texts]).encode()).hexdigest()
            path = folder / f"{key}.safetensors"
            try:
                batch = load(path.read_bytes())["latents"]
            except (OSError, SafetensorError, KeyError):
                batch = _draw(
                    pipe,
                    texts,
                    config,
                    [_seed(config.seed, stream, start + k) for k in range(len(texts))],
                    dtype,
                )
                folder.mkdir(parents=True, exist_ok=True)
                write_file(path, save({"latents": batch}))
            latents.append(batch)
            bar.update(len(texts))
    return torch.cat(latents)


@torch.no_grad()
def _draw(pipe: Any, texts: list[str], config: TrainConfig, seeds: list[int], dtype: torch.dtype) -> Tensor:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.autocast(pipe.unet.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = pipe(
            texts,
            num_inference_steps=config.sampling_steps,
            guidance_scale=config.guidance_scale,
            generator=generators,
            output_type="latent",
        )
    latents: Tensor = output.images
    return latents.float().cpu().contiguous()


def _seed(*parts: int) -> int:
    """One seed from several numbers, so that neighbouring series do not overlap."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


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


def draw_batch(
    data: Data, config: TrainConfig, index: int, n_levels: int, pick: Tensor | None = None
) -> Batch:
    """Draw the batch of one step. It depends on nothing but the arguments, so a resumed run draws the same.

    Args:
        data: The examples.
        config: Batch sizes, noise levels and seed.
        index: Number of the batch.
        n_levels: Number of noise levels of the model's schedule.
        pick: How likely each identity example is, shape (M,); None makes all alike.
    """
    rng = torch.Generator().manual_seed(_seed(config.seed, 2, index))
    likely = torch.ones(len(data.identity)) if pick is None else pick
    identity = torch.multinomial(likely, config.identity_batch, replacement=True, generator=rng)
    generic = torch.randint(len(data.generic), (config.generic_batch,), generator=rng)
    size = config.identity_batch + config.generic_batch
    low = int(config.timestep_low * n_levels)
    high = max(low + 1, int(config.timestep_high * n_levels))
    t = torch.randint(low, high, (size,), generator=rng)
    noise = torch.randn((size, *data.identity.latents.shape[1:]), generator=rng)
    return Batch(identity, generic, t, noise)
