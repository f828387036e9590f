"""Textual inversion: for each person a word is learned, and nothing else; loaded by diffusers.

A word has as many vectors as a description of the person has tokens, said three times, and begins as these: "a man with
tan skin and curly black hair" is what somebody would start from who has pictures of a stranger.
Each word is learned from the drawings of its own person, so all are learned at once, a drawing of each in every step.

Source:
    Gal et al., An Image is Worth One Word, arXiv:2208.01618.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from apl_guard.storage import write_file
from apl_guard.trainer.minifaces.autoencoder import encode
from apl_guard.trainer.minifaces.training import fit
from apl_guard.trainer.model.pipeline import with_parts
from apl_guard.trainer.model.unets import quick_attention
from apl_guard.trainer.personalise.added import Added, decided_by
from apl_guard.trainer.personalise.denoising import denoising_loss
from apl_guard.trainer.personalise.drawings import Drawings
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.shelf import kept


def word_for(name: str) -> str:
    """How a learned word is written.

    Example:
        >>> word_for("Mara Westgate")
        '<mara-westgate>'
    """
    return "<" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ">"


def textual_inversion(pipe: Any, drawings: Drawings, recipe: Recipe, *, progress: bool = True) -> Added:
    """Add people by words; read from the user's cache where that was done before.

    Args:
        pipe: The model. It stays as it is.
        drawings: Of the people.
        recipe: How long, how fast.
        progress: Whether to draw progress bars.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    words = {person.name: word_for(person.name) for person in drawings.people}

    def make(checkpoint: Path, folder: Path) -> None:
        from safetensors.torch import save

        learned = _learn(pipe, drawings, list(words.values()), recipe, checkpoint, progress)
        folder.mkdir()
        for word, vectors in learned.items():
            write_file(folder / f"{word[1:-1]}.safetensors", save({word: vectors}))

    settings = ("inversion_steps", "inversion_rate", "inversion_repeats", "inversion_descriptions")
    decides = decided_by(pipe, drawings, recipe, *settings) | {"start": "description"}
    folder = kept("textual-inversion", decides, make)
    added = with_parts(pipe, text_encoder=copy.deepcopy(pipe.text_encoder), tokenizer=copy.deepcopy(pipe.tokenizer))
    added.load_textual_inversion([str(folder / f"{word[1:-1]}.safetensors") for word in words.values()])
    return Added(added, words, policy="anonymize_personalised")


class _Words(nn.Module):
    """A table of token embeddings with rows behind it that learn."""

    def __init__(self, table: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.table = nn.Buffer(table.detach(), persistent=False)
        self.learned = nn.Parameter(rows.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) → (B, L, D)."""
        return F.embedding(ids, torch.cat([self.table, self.learned]))


def _learn(
    pipe: Any, drawings: Drawings, words: Sequence[str], recipe: Recipe, checkpoint: Path, progress: bool
) -> dict[str, Tensor]:
    """Word → its vectors, shape (number of tokens of all that is said, D)."""
    tokenizer = copy.deepcopy(pipe.tokenizer)
    encoder = copy.deepcopy(pipe.text_encoder).eval().requires_grad_(False)
    unet = copy.deepcopy(pipe.unet).eval().requires_grad_(False)
    table = encoder.get_input_embeddings().weight
    starts = [
        tokenizer(person.neutral("attributes"), add_special_tokens=False)["input_ids"] * recipe.inversion_descriptions
        for person in drawings.people
    ]
    embedding = _Words(table, table[[token for start in starts for token in start]])
    encoder.set_input_embeddings(embedding)
    spelled = {}  # name → its word as the tokenizer of this function reads it
    for person, word, start in zip(drawings.people, words, starts, strict=True):
        tokens = [f"{word}{k}" for k in range(len(start))]
        tokenizer.add_tokens(tokens)
        spelled[person.name] = " ".join(tokens)
    texts = [
        text.replace(person.name, spelled[person.name])
        for i, text in enumerate(drawings.captions)
        for person in [drawings.people[drawings.person_of(i)]]
    ]
    rows = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].to(table.device)
    latents, people = encode(pipe.vae, drawings.images), len(drawings.people)
    each = len(drawings.images) // people

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        # one drawing of everybody, by one of its captions
        shown = torch.arange(people) * each + torch.randint(each, (people,), generator=generator)
        said = shown + len(latents) * torch.randint(len(rows) // len(latents), (people,), generator=generator)
        c = encoder(input_ids=rows[said]).last_hidden_state
        # the text encoder takes most of the time, so what it says is used at several noise levels
        z, c = (x.repeat(recipe.inversion_repeats, *[1] * (x.ndim - 1)) for x in (latents[shown], c))
        # the sum over people: nobody's word learns more slowly because there are others
        return denoising_loss(pipe, unet, z, c, generator).mean() * people, {}

    with quick_attention(unet):
        fit(
            "textual inversion",
            embedding,
            loss,
            steps=recipe.inversion_steps,
            learning_rate=recipe.inversion_rate,
            checkpoint=checkpoint,
            weight_decay=0.0,
            warmup=recipe.inversion_steps // 8,
            progress=progress,
        )
    parts = torch.split(embedding.learned.detach().cpu(), [len(start) for start in starts])
    return {word: part.contiguous() for word, part in zip(words, parts, strict=True)}
