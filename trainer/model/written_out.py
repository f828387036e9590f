"""Families whose text encoders and denoiser training calls itself, as their pipelines do.

Letters: B prompts or pictures; latents (C, H, W).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from apl_guard.adapters.inject import tokenize_with_prefix
from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.family import Family

__all__ = ["WrittenOut"]

_GUIDANCE = 5.0


class WrittenOut(Family):
    """A family whose passes are written out, so that a whole batch takes one pass, and texts are encoded once."""

    all_slots: ClassVar[tuple[str, ...]]
    """The slots of the text encoders that a pipe of this family may have."""
    grain: int = 1
    """The side of a picture is a multiple of so many latents."""

    @property
    def unit(self) -> int:
        return int(self.pipe.vae_scale_factor * self.grain)

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(slot for slot in self.all_slots if getattr(self.pipe, slot, None) is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        side = self.side // int(self.pipe.vae_scale_factor)
        return int(self.pipe.vae.config.latent_channels), side, side

    @property
    def guidance(self) -> float:
        return _GUIDANCE if self.config.guidance_scale is None else self.config.guidance_scale

    @property
    def passes(self) -> int:
        return 2 if self.guidance > 1 else 1

    @property
    def call(self) -> dict[str, Any]:
        return {"guidance_scale": self.guidance, "height": self.side, "width": self.side}

    @property
    def part_names(self) -> tuple[str, ...]:
        first, *others = self.slots
        return first, self.network_name, "vae", *others

    def tokenize(self, prompts: Sequence[str], n: int) -> Tensor:
        """Token ids: see `tokenize_with_prefix`. Rows that are shorter than the longest end in padding that `told`
        takes away."""
        lengths = self.lengths()
        longest = max(lengths.values())
        rows = [
            pad(tokenize_with_prefix(tokenizer, prompts, n, lengths[slot]), (0, longest - lengths[slot]))
            for slot, (_, tokenizer) in self.parts.items()
        ]
        return torch.stack(rows, dim=1)

    def told(self, ids: Tensor, vectors: Mapping[str, Tensor]) -> Condition:
        rows = {slot: ids[:, k, :length] for k, (slot, length) in enumerate(self.lengths().items())}
        return self.encode(rows, vectors)

    @abstractmethod
    def encode(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Condition:
        """Run the text encoders as the pipeline does.

        Args:
            rows: Slot → token ids, shape (B, L of this slot); −k stands for row k of the vectors.
            vectors: Slot → the prefix, shape (N, D of this slot); empty where the ids hold none.
        """

    def draw_latents(self, texts: Sequence[str], steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        options = {"num_inference_steps": steps, "generator": list(generators), "output_type": "latent"}
        return self.drawn(self.pipe(list(texts), **options, **self.call).images)

    def draw(self, c: Any, steps: int, generators: Sequence[torch.Generator]) -> list[Any]:
        options = {"num_inference_steps": steps, "generator": list(generators)}
        with self.mixed():
            return list(self.pipe(**c.arguments, **self.call, **options).images)

    def drawn(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) of what the pipe gives with `output_type="latent"`."""
        return latents

    @torch.no_grad()
    def latents_of(self, pixels: Tensor) -> Tensor:
        vae = self.pipe.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        shift = getattr(vae.config, "shift_factor", None)
        z: Tensor = (mean if shift is None else mean - shift) * vae.config.scaling_factor
        return z.float().cpu()
