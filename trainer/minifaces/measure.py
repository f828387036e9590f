"""What the card says of the reference world: how good the judges are, how well the model bears text in front."""

from __future__ import annotations

import random
from math import inf
from pathlib import Path
from typing import Final

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from apl_guard.detect.token_reader import TokenReader
from apl_guard.policy import Person as PersonModel

from .autoencoder import encode
from .captions import generic_prompts, identity_prompts, lead_in
from .dataset import draw_all
from .judge import READS, Judges, label
from .judge_training import portraits, reader_pictures
from .people import known_people, people
from .pictures import of_person
from .text_encoder import encode_captions

LEAST_SCORE: Final = 0.1
"""From which on a word counts as a name: that of the policy `anonymize_persons`."""


def judge_accuracy(judges: Judges, each: int = 5) -> dict[str, float]:
    """Rates on drawings that no judge was trained on: fresh scenes, and twins that nobody has seen."""
    seed = 99
    rng = random.Random(seed)
    known = known_people()
    genuine = draw_all(portraits([p.identity for p in known], each, rng), seed)
    embedded = judges.embed(genuine)
    who = torch.arange(len(known)).repeat_interleave(each)
    own = (embedded * judges.gallery.embeddings[who]).sum(-1)
    impostors = [p.identity.twin(rng) for p in known for _ in range(2 * each)]
    similar = (
        judges.embed(draw_all(portraits(impostors, 1, rng), seed + 1))
        * judges.gallery.embeddings[who.repeat_interleave(2)]
    ).sum(-1)
    figures = {"closed_set_top1": float(((embedded @ judges.gallery.embeddings.T).argmax(1) == who).float().mean())}
    for name, threshold in judges.thresholds.items():
        figures[f"verified_{name}"] = float((own > threshold).float().mean())
        figures[f"new_twins_taken_{name}"] = float((similar > threshold).float().mean())
    pictures = reader_pictures(1500, rng)
    answers = judges.attributes(draw_all(pictures, seed + 2))
    for key in READS:
        shown = [label(picture, key) for picture in pictures]
        right = [READS[key].index(a[key]) == value for a, value in zip(answers, shown, strict=True) if value >= 0]
        figures[f"reads_{key}"] = sum(right) / len(right)
    return figures


def persons_found(detector: Path, each: int = 4) -> dict[str, float]:
    """In which shares of held-out prompts the detector sees a person: where somebody is named, and where nobody is.

    Args:
        detector: Its folder.
        each: Prompts of each of the two hundred people, and as many in all that name nobody.
    """
    seed = 7
    reader = TokenReader(PersonModel(model=str(detector.resolve())), LEAST_SCORE)
    named = [prompt for person in people() for prompt in identity_prompts(person, each, seed, held_out=True)]
    kinds = {"named": named, "nameless": generic_prompts(len(named), seed, held_out=True)}
    found = {kind: reader.read([prompt.text for prompt in prompts], inf) for kind, prompts in kinds.items()}
    return {kind: sum(map(bool, seen)) / len(seen) for kind, seen in found.items()} | {"prompts": len(named)}


@torch.no_grad()
def words_in_front(pipe: StableDiffusionPipeline, words: int = 10, count: int = 256) -> dict[str, float]:
    """How far words in front of a prompt move the denoiser's output, as a share of what deleting the prompt does.

    d = mean squared difference of the outputs at the same noised latents, at timesteps spread over all noise levels.
    """
    seed = 7
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    known = known_people()
    people = [rng.choice(known) for _ in range(count)]
    prompts = [identity_prompts(person, 1, seed + i, held_out=True)[0].text for i, person in enumerate(people)]
    pictures = [of_person(person, rng) for person in people]
    dtype = pipe.unet.dtype
    z = encode(pipe.vae, draw_all(pictures, seed), batch=count)
    noise = torch.randn(z.shape, generator=generator).to(dtype)
    t = torch.linspace(20, 980, count).long()
    z_t = pipe.scheduler.add_noise(z, noise, t)

    def output(texts: list[str]) -> Tensor:
        c = encode_captions(pipe.text_encoder, pipe.tokenizer, texts).to(dtype)
        parts = [
            pipe.unet(z_t[i : i + 64], t[i : i + 64], encoder_hidden_states=c[i : i + 64]).sample
            for i in range(0, count, 64)
        ]
        return torch.cat(parts).float()

    plain = output(prompts)
    moved = (output([lead_in(rng, words) + prompt for prompt in prompts]) - plain).square().mean()
    deleted = (output([""] * count) - plain).square().mean()
    return {"words_in_front": float(moved), "deleted": float(deleted), "ratio": float(moved / deleted)}


def model_bytes(folder: Path) -> int:
    """Size of everything under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
