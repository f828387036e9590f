"""The text encoder of the reference world: transformers' CLIPTextModel, trained against an image encoder, then frozen.

Three losses.  *Contrast*: in a batch, each caption finds its picture and each picture its caption (Radford et al. 2021,
fig. 3).  *Bearing*: with words in front, every token of a caption keeps the hidden state that it has without them, so
that text in front of a prompt disturbs as little as it does in CLIP, which saw captions of every shape.  *Reading*:
what the picture shows can be read from the tokens' states by attention, as the denoiser reads them.  Contrast alone,
over so few captions, leaves a bag of words: it is content without knowing which of two colours the shirt has.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from apl_guard.trainer.model.pipeline import find_device

from .autoencoder import to_tensor
from .captions import LEAD_IN_WORDS, lead_in
from .convnet import Embedder
from .dataset import Images
from .judge import READS, label
from .pictures import Picture
from .tokenizer import WINDOW
from .training import autocast, fit
from .traits import GEOMETRY, GEOMETRY_VARIANCE

WIDTH: Final = 192
LAYERS: Final = 6
BEARING_WEIGHT: Final = 1.0
READING_WEIGHT: Final = 4.0
PADS: Final = 6
"""Tokens of padding behind the longest caption of a batch: the denoiser reads their states too."""


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            max_position_embeddings=WINDOW,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )


class Reading(nn.Module):
    """Reads from token states what the picture shows: attributes as in `READS`, and the geometry of the face.

    Each answer has a query of its own and looks over all tokens once.
    """

    def __init__(self, heads: int = 4, head_width: int = 32) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(READS) + 1, heads, head_width))
        self.keys = nn.Linear(WIDTH, heads * head_width)
        self.values = nn.Linear(WIDTH, heads * head_width)
        sizes = [*map(len, READS.values()), GEOMETRY]
        self.answers = nn.ModuleList(nn.Linear(heads * head_width, size) for size in sizes)

    def forward(self, states: Tensor) -> list[Tensor]:
        """(b, L, WIDTH) → logits (b, values) for every key of `READS`, then the geometry (b, GEOMETRY)."""
        b, length, _ = states.shape
        k = self.keys(states).view(b, length, *self.queries.shape[1:])
        v = self.values(states).view(b, length, *self.queries.shape[1:])
        attention = (torch.einsum("qhd,blhd->bqhl", self.queries, k) / k.shape[-1] ** 0.5).softmax(-1)
        read = torch.einsum("bqhl,blhd->bqhd", attention, v).flatten(2)
        return [answer(read[:, i]) for i, answer in enumerate(self.answers)]

    def loss(self, states: Tensor, labels: Tensor, geometry: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy over the attributes, plus the geometry's squared error as a share of its variance.

        Each attribute weighs as much as there is still to read of it, its entropy as a share of guessing: a mean would
        leave the few words for expressions to the last.  ``labels`` (b, keys) is −1 and ``geometry`` (b, GEOMETRY) is
        nan where there is nothing to read.  Returns the loss, and what of each attribute is unread.
        """
        *attributes, shape = self(states)
        unread: dict[str, Tensor] = {}
        for (key, values), logits, wanted in zip(READS.items(), attributes, labels.T, strict=True):
            if (wanted >= 0).any():
                unread[key] = F.cross_entropy(logits, wanted, ignore_index=-1) / math.log(len(values))
        shares = torch.stack(list(unread.values()))
        entropy = (shares.detach() * shares).sum() / shares.detach().sum()
        has_face = ~geometry[:, 0].isnan()
        error = (shape[has_face] - geometry[has_face]).square().sum() / (geometry[has_face].numel() + 1)
        return entropy + error / GEOMETRY_VARIANCE, {key: float(share.detach()) for key, share in unread.items()}


class Pair(nn.Module):
    """Text encoder, image encoder and temperature, which the contrast trains, and what reads."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image = Embedder((32, 48, 96, 128), WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(2.6))
        self.reading = Reading()


def train_text_encoder(
    tokenizer: CLIPTokenizer,
    images: Images,
    pictures: Sequence[Picture],
    captions: Sequence[str],
    steps: int,
    batch: int,
    checkpoint: Path,
) -> CLIPTextModel:
    """``captions[i]`` says ``images[i % len(images)]``, which draws the picture of that number; all losses together."""
    pair = Pair(new_text_encoder(tokenizer)).to(find_device())
    rows = [torch.tensor(ids) for ids in tokenizer(list(captions), truncation=True, max_length=WINDOW)["input_ids"]]
    pixels = torch.from_numpy(images)
    lengths = torch.tensor([len(row) for row in rows])
    labels = torch.tensor([[label(picture, key) for key in READS] for picture in pictures])
    geometry = torch.tensor([_geometry(picture) for picture in pictures])
    front = _lead_in_rows(tokenizer, 4000)
    end = int(tokenizer.eos_token_id)

    def hidden(batch_rows: list[Tensor]) -> Tensor:
        ids = nn.utils.rnn.pad_sequence(batch_rows, batch_first=True, padding_value=end).to(find_device())
        with autocast():
            states: Tensor = pair.text(input_ids=ids).last_hidden_state
        return states.float()  # (b, longest, WIDTH)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        # captions of about one length, so that little is spent on padding
        drawn = torch.randint(len(rows), (8 * batch,), generator=generator)
        drawn = drawn[lengths[drawn].argsort()]
        first = int(torch.randint(7 * batch + 1, (1,), generator=generator))
        picks = drawn[first : first + batch]
        mine = [rows[i] for i in picks]
        pads = mine[0].new_full((max(map(len, mine)) + PADS,), end)
        plain = hidden([*mine, pads])[:-1]
        x = to_tensor(pixels[picks % len(pixels)]).to(find_device())
        x = x + 0.03 * torch.randn(x.shape, generator=generator).to(x)
        with autocast():
            seen = pair.image(x).float()
        said = F.normalize(pair.project(plain[torch.arange(batch), lengths[picks] - 1]), dim=-1)
        logits = pair.log_scale.clamp(max=4.6).exp() * said @ seen.T
        target = torch.arange(batch, device=logits.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        chosen = torch.randint(len(front), (batch // 5,), generator=generator)
        some = torch.randperm(batch, generator=generator)[: len(chosen)]
        led = [torch.cat([mine[k][:1], front[j], mine[k][1:]]) for k, j in zip(some, chosen, strict=True)]
        led = [row[: WINDOW - PADS] for row in led]
        borne = hidden([*led, led[0].new_full((max(map(len, led)) + PADS,), end)])[:-1]
        bearing = torch.zeros((), device=logits.device)
        for row, k, j in zip(borne, some.tolist(), chosen.tolist(), strict=True):
            there, here = row[1 + len(front[j]) :], plain[k, 1:].detach()
            n = min(len(there), len(here))  # tokens, end and the padding that both have
            bearing = bearing + (there[:n] - here[:n]).square().mean() / len(some)
        shown = picks % len(pixels)
        reading, unread = pair.reading.loss(plain, labels[shown].to(plain.device), geometry[shown].to(plain.device))
        return contrast + BEARING_WEIGHT * bearing + READING_WEIGHT * reading, {
            "bearing": float(bearing.detach()),
            "reading": float(reading.detach()),
            "retrieval": float((logits.argmax(1) == target).float().mean()),
            "expression unread": unread.get("expression", 1.0),
        }

    fit("text encoder", pair, loss, steps=steps, learning_rate=1e-3, checkpoint=checkpoint, average=True)
    return pair.text.eval().requires_grad_(False)


def _geometry(picture: Picture) -> tuple[float, ...]:
    """The geometry of the face shown; not a number where none is."""
    return (float("nan"),) * GEOMETRY if picture.identity is None else astuple(picture.identity.geometry)


def _lead_in_rows(tokenizer: CLIPTokenizer, count: int) -> list[Tensor]:
    """Token ids of lead-ins of 1 to 25 words, without start and end."""
    rng = random.Random("lead-ins")
    texts = [lead_in(rng, rng.randint(1, LEAD_IN_WORDS)) for _ in range(count)]
    return [torch.tensor(ids[1:-1]) for ids in tokenizer(texts)["input_ids"]]


@torch.no_grad()
def encode_captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[str], batch: int = 256
) -> Tensor:
    """Prompt embeds (n, 77, WIDTH) in bfloat16, as the pipeline would compute them; many are computed in it, too."""
    parts = []
    for i in range(0, len(captions), batch):
        ids = tokenizer(
            list(captions[i : i + batch]),
            padding="max_length",
            truncation=True,
            max_length=WINDOW,
            return_tensors="pt",
        )["input_ids"]
        with autocast(encoder.device) if len(captions) > batch else nullcontext():
            states = encoder(input_ids=ids.to(encoder.device)).last_hidden_state
        parts.append(states.bfloat16().cpu())
    return torch.cat(parts)
