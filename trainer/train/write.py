"""Writing the prefix folder at the end of training: the prefix, its card, pictures, options and history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.traits import traits_of
from apl_guard.prefix import Prefix, PrefixMetadata
from apl_guard.storage import write_folder
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Data
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.report.pictures import png, sheet
from apl_guard.trainer.train.card import Card, write_card
from apl_guard.trainer.train.history import History
from apl_guard.trainer.train.result import TrainResult

if TYPE_CHECKING:
    from PIL.Image import Image


_SHOWN_PEOPLE = 4
_SHOWN_GENERIC = 4


def write_prefix(pipe: Any, config: TrainConfig, data: Data, result: TrainResult, history: History) -> None:
    """Write everything; `prefix.safetensors` comes last, so a folder without it is no prefix.

    Args:
        pipe: The model.
        config: The options of the run.
        data: Prompts for the pictures on the card.
        result: The prefix and its evaluation.
        history: What the run saw.

    Raises:
        StorageFailed: Something cannot be written.
    """
    prefix = as_prefix(pipe, config, result)
    people, generic = data.held_identity, data.held_generic
    per_person = max(1, len(people) // max(1, len(set(people.people.tolist()))))
    named = people.prompts[::per_person][:_SHOWN_PEOPLE]
    prompts = [*named, *generic.prompts[:_SHOWN_GENERIC]]
    side = max(96, min(family_of(pipe, config).side, 192))
    picture = sheet(
        before_and_after(pipe, config, prompts, result.vectors),
        side,
        {"with a name": len(named), "without a name": len(prompts) - len(named)},
    )
    card = Card(config=config, result=result, metadata=prefix.metadata, prompts=tuple(prompts), people=len(data.names))
    write_folder(
        result.folder,
        {
            "config.yaml": config.to_bytes(),
            "history.jsonl": history.to_bytes(),
            "before_and_after.png": png(picture),
        },
    )
    prefix.save(result.folder, card=write_card(card))


def as_prefix(pipe: Any, config: TrainConfig, result: TrainResult) -> Prefix:
    """Bind the vectors to the text encoders that they were trained with."""
    family = family_of(pipe, config)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", result.folder.resolve().name).lstrip("._-")[:64] or "prefix"
    metadata = PrefixMetadata(
        name=name,
        n=config.n_vectors,
        widths=family.widths,
        fingerprints={slot: fingerprint(*part) for slot, part in family.parts.items()},
        traits={slot: traits_of(*part) for slot, part in family.parts.items()},
        config_digest=config.digest,
        evaluation={
            "gap_closed": result.measurement.gap_closed,
            "generic_drift": result.measurement.generic_drift,
            "step": result.step,
        },
        created=datetime.now(UTC),
    )
    return Prefix({slot: part.contiguous() for slot, part in family.split(result.vectors).items()}, metadata)


@torch.no_grad()
def before_and_after(pipe: Any, config: TrainConfig, prompts: Sequence[str], vectors: Tensor) -> dict[str, list[Image]]:
    """Draw prompts without the prefix ("plain") and with it ("guarded"), from the same seeds."""
    family = family_of(pipe, config)
    vectors = vectors.to(family.device)
    images: dict[str, list[Image]] = {"plain": [], "guarded": []}
    for arm, prefix in (("plain", None), ("guarded", vectors)):
        condition = family.embed(family.tokenize(prompts, 0 if prefix is None else len(prefix)), prefix)
        for start in range(0, len(prompts), config.sampling_batch):
            part = condition[start : start + config.sampling_batch]
            seeds = range(start, start + len(part))
            generators = [torch.Generator("cpu").manual_seed(config.seed + seed) for seed in seeds]
            images[arm] += family.draw(part, config.sampling_steps, generators)
    return images
