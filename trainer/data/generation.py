"""Pictures that the model makes itself, as latents, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from apl_guard.prefix.layout import cache_root
from apl_guard.storage import make_folder, write_file
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.seeds import seed_of
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import frozen, model_digest


def cache_folder() -> Path:
    """Where latents are kept. It may be deleted at any time."""
    return cache_root() / "latents"


def self_generate(
    pipe: Any, prompts: Sequence[str], config: TrainConfig, series: int, progress: bool, label: str
) -> Tensor:
    """Let the model draw prompts, and keep the latents of each batch on disk.

    A run that was killed goes on at the batch it had reached; nothing is drawn twice.

    Args:
        pipe: The model.
        prompts: M texts.
        config: Steps, guidance, batch and seed.
        series: Of seeds; equal series with equal prompts give equal latents.
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
    family = family_of(pipe, config)
    settings = [
        config.sampling_steps,
        family.guidance,
        config.seed,
        series,
        str(family.dtype),
        str(family.device),
        family.side,
        *([] if family.t5_length is None else [family.t5_length]),
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
                    [seed_of(config.seed, series, start + k) for k in range(len(texts))],
                )
                make_folder(folder)
                write_file(path, save({"latents": batch}))
            latents.append(batch)
            bar.update(len(texts))
    return torch.cat(latents)


@torch.no_grad()
def _draw(pipe: Any, texts: list[str], config: TrainConfig, seeds: list[int]) -> Tensor:
    # Frozen, because other attention code gives other bits.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    family = family_of(pipe, config)
    with frozen(pipe), family.cast():
        latents = family.draw_latents(texts, config.sampling_steps, generators)
    return latents.float().cpu().contiguous()
