"""What a run starts from: the model, its generic prompts, and the vectors before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apl_guard.errors import ConfigInvalid, InvalidInput, ModelInvalid
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.captions import generic_captions
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import check_steps, find_device, open_pipe


def open_to_learn(model: str | Path | Any, config: TrainConfig) -> Any:
    """Open the model of a run.

    Args:
        model: As for `train`.
        config: Device, number format, denoising steps.

    Raises:
        ModelInvalid: It cannot be opened, or is in float16.
        InvalidInput: It was trained with fewer noise levels than denoising steps are asked for.
    """
    pipe = open_pipe(model, find_device(config.device), config.precision)
    check_steps(pipe, config.sampling_steps, where="sampling_steps")
    family = family_of(pipe, config)
    for name in (family.network_name, *family.slots):
        if getattr(pipe, name).dtype == torch.float16:
            msg = f"its {name} is in float16, in which gradients vanish; expected bfloat16 or float32"
            raise ModelInvalid(msg, where=type(pipe).__name__)
    return pipe


def generic_prompts(
    generic: str | Path | Sequence[str] | None, model: object, config: TrainConfig
) -> Path | Sequence[str]:
    """Find the generic prompts: what the user gave, or those that are built in.

    Args:
        generic: As for `train`.
        model: As for `train`; the reference world has prompts of its own.
        config: How many, and the seed.

    Raises:
        InvalidInput: There is no such file or folder.

    Example:
        >>> generic_prompts(None, "sd15", TrainConfig(generic_count=1))
        ['...']
    """
    if generic is None:
        if isinstance(model, (str, Path)) and str(model) == "minifaces":
            return minifaces.captions(config.generic_count, seed=config.seed)
        return generic_captions(config.generic_count, seed=config.seed)
    if isinstance(generic, (str, Path)):
        path = Path(generic)
        if not path.exists():
            raise InvalidInput("no such file or folder; expected generic prompts or images", where=path)
        return path
    return generic


@torch.no_grad()
def start_vectors(pipe: Any, config: TrainConfig) -> Tensor:
    """The vectors before the first step, shape (N, D), float32.

    Raises:
        ConfigInvalid: The prefix would leave no room for a prompt, or the words to start from hold no token.
    """
    family, N = family_of(pipe, config), config.n_vectors
    room = min(family.lengths().values(), default=None)
    if room is not None and room - N < 3:
        raise ConfigInvalid(f"{N} vectors leave no room for a prompt in {room} positions", where="n_vectors")
    rng = torch.Generator().manual_seed(config.seed)
    parts = zip(family.tables, family.tokenizers, strict=True)
    return torch.cat([_start(table.cpu(), tokenizer, config, rng) for table, tokenizer in parts], dim=1)


def _start(table: Tensor, tokenizer: Any, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """The vectors of one text encoder.

    Args:
        table: Its token embeddings, shape (V, D).
        tokenizer: Its tokenizer.
        config: How many, and from what.
        rng: Where noise comes from.
    """
    N = config.n_vectors
    if config.init == "padding":
        return table[tokenizer.pad_token_id].repeat(N, 1)
    if config.init == "noise":
        return table.mean(0) + table.std(0) * torch.randn((N, table.shape[1]), generator=rng)
    ids = tokenizer(config.start_words, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigInvalid("the tokenizer finds no token in it; expected at least one word", where="start_words")
    return table[[ids[k % len(ids)] for k in range(N)]].clone()
