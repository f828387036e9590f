"""The reference world's detector of persons: a small BERT that says which words of a text belong to a name.

A policy uses it like any other token-classification model of transformers.  It is trained on captions in which invented
names stand, none of them of the register, so whoever a prompt names is new to it.  What it learns is which words a
caption is made of without anybody's name: a word that is none of these is a name.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification, CLIPTokenizerFast

from apl_guard.trainer.model.pipeline import find_device

from .captions import LEAD_IN_WORDS, caption, lead_in, random_lead_in
from .people import people
from .pictures import random_picture
from .tokenizer import WINDOW
from .training import autocast, fit

_PLACE: Final = "\x00"
"""Stands for the name in a caption."""
_ONSETS: Final = (
    "", "b", "br", "c", "d", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "w", "z",
)  # fmt: skip
_RHYMES: Final = (
    "a", "an", "ar", "e", "el", "en", "er", "i", "il", "in", "ir", "o", "ol", "on", "or", "u", "ul", "und",
)  # fmt: skip
_ENDS_EARLY: Final = 0.3
"""Share of the captions that end at any of their words."""
_GOES_ON: Final = 0.3
"""Share of the captions with words behind them."""
_ANYWHERE: Final = 0.3
"""Share of the captions into which a name is put anywhere."""
_LEET: Final = str.maketrans("aeios", "43105")


def new_reader(tokenizer: CLIPTokenizerFast) -> BertForTokenClassification:
    """Untrained."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "O", 1: "PER"},
        label2id={"O": 0, "PER": 1},
    )
    return BertForTokenClassification(config)


def save_person_reader(tokenizer: CLIPTokenizerFast, reader: BertForTokenClassification, to: Path) -> None:
    """Write the folder that a policy names, in half precision, as versions 4 and 5 of transformers read it."""
    reader.half().save_pretrained(to)
    tokenizer.save_pretrained(to)
    if not (to / "merges.txt").exists():  # which version 4 wants
        Tokenizer.from_file(str(to / "tokenizer.json")).model.save(str(to))
    config = to / "config.json"  # which says what to compute in
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def invented_name(rng: random.Random) -> str:
    """Two words, neither of them a first or a last name of the register."""
    taken = {word.lower() for person in people() for word in person.name.split()}

    def word() -> str:
        while True:
            made = "".join(rng.choice(_ONSETS) + rng.choice(_RHYMES) for _ in range(rng.randint(1, 4)))
            if len(made) > 2 and made not in taken:
                return made.title()

    return f"{word()} {word()}"


def written(name: str, rng: random.Random) -> str:
    """A name as somebody may write it."""
    first, last = name.split()
    match rng.randrange(10):
        case 0:
            return rng.choice((first, last))
        case 1:
            return rng.choice(("", "_", "-", ".")).join((first, last))
        case 2:
            return rng.choice((".", "/", "-", " ")).join(name.replace(" ", ""))
        case 3:
            cut = rng.randint(1, len(last) - 1)
            return f"{first} {last[:cut]}{rng.choice(('-', ' ', '.'))}{last[cut:]}"
        case 4:
            return name.lower().translate(_LEET)
        case 5:
            return rng.choice((f"{last}, {first}", f"#{first}{last}".lower(), f"@{first}.{last}".lower()))
        case _:
            return name


def example(rng: random.Random) -> tuple[str, list[tuple[int, int]]]:
    """A caption, and where in it names stand, if any do.

    Some end early, some go on with words of no meaning, and in some a name stands anywhere: whoever is named is named
    by what the word is, not by what stands around it.
    """
    picture = random_picture(rng)
    if picture.person is not None:
        picture = replace(picture, person=replace(picture.person, name=_PLACE))
    said = caption(picture, rng, random_lead_in(rng))
    if rng.random() < _ENDS_EARLY:
        words = said.split()
        said = " ".join(words[: rng.randint(1, len(words))])
    if rng.random() < _GOES_ON:
        said += f" , {lead_in(rng, rng.randint(1, LEAD_IN_WORDS))}"
    if rng.random() < _ANYWHERE:
        words = said.split()
        words.insert(rng.randint(0, len(words)), _PLACE)
        said = " ".join(words)
    text, spans = "", []
    for k, part in enumerate(said.split(_PLACE)):
        if k:
            name = written(invented_name(rng), rng)
            spans.append((len(text), len(text) + len(name)))
            text += name
        text += part
    return text, spans


def train_person_reader(
    tokenizer: CLIPTokenizerFast, steps: int, batch: int, checkpoint: Path
) -> BertForTokenClassification:
    """Train it.

    Args:
        tokenizer: Whose words it reads.
        steps: Steps.
        batch: Captions a step.
        checkpoint: Where a stopped run goes on.
    """
    reader = new_reader(tokenizer).to(find_device())

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        texts, spans = zip(*(example(rng) for _ in range(batch)), strict=True)
        encoded = tokenizer(
            list(texts), padding=True, truncation=True, return_tensors="pt", return_offsets_mapping=True
        )
        labels = torch.zeros(encoded["input_ids"].shape, dtype=torch.long)
        for row, (places, named) in enumerate(zip(encoded.pop("offset_mapping").tolist(), spans, strict=True)):
            for column, (start, end) in enumerate(places):
                inside = any(start >= a and end <= b for a, b in named)
                labels[row, column] = int(inside) if end > start else -100
        encoded, labels = encoded.to(reader.device), labels.to(reader.device)
        with autocast(reader.device):
            logits = reader(**encoded).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), {}

    fit("persons", reader, loss, steps=steps, learning_rate=1e-3, checkpoint=checkpoint, average=True)
    return reader.eval()
