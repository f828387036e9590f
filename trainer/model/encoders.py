"""The text encoders of a model side by side: prompts in, what the denoiser is told of them out.

Letters: B prompts, S text encoders, L places in the longest row, N prefix vectors. P is the prefix, (N, D): each row
holds the vector of each text encoder, one beside the other, so D is the sum of their widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.families import family_of

__all__ = ["Encoders"]


class Encoders:
    """The text encoders of a model.

    Args:
        pipe: A model that `open_pipe` opened.
        config: The options of a run; default: the defaults.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> encoders = Encoders(tiny_pipe(family="stable_diffusion_xl"))
        >>> encoders.widths
        {'text_encoder': 32, 'text_encoder_2': 32}
        >>> ids = encoders.tokenize(["a photo of a man"], n=4)
        >>> ids.shape, encoders.embed(ids, torch.randn(4, 64)).hidden.shape
        (torch.Size([1, 2, 77]), torch.Size([1, 77, 64]))
    """

    def __init__(self, pipe: Any, config: TrainConfig | None = None) -> None:
        self._family = family_of(pipe, config)
        self.slots = self._family.slots
        self.lengths = self._family.lengths()
        """Slot → how many places its rows have."""
        self.parts: dict[str, tuple[Any, Any]] = self._family.parts
        """Slot → its text encoder and its tokenizer."""
        self.widths = {slot: token_embedding(encoder).embedding_dim for slot, (encoder, _) in self.parts.items()}

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers, in the order of the slots."""
        return [tokenizer for _, tokenizer in self.parts.values()]

    @property
    def room(self) -> int | None:
        """How many places a row has: the fewest of any text encoder. None where rows are as long as they must be."""
        return min(self.lengths.values(), default=None)

    def tables(self) -> list[Tensor]:
        """The token embeddings of each text encoder, shape (V, its width), float32."""
        return [token_embedding(text_encoder).weight.detach().float() for text_encoder, _ in self.parts.values()]

    def scales(self) -> Tensor:
        """How large a step is in each column of P, shape (D,): 1 for the first text encoder, and for the others as
        their token embeddings are larger or smaller. Vectors that move too little learn nothing, others break.

        Powers of two, so that dividing by them and multiplying again gives the same bits.
        """
        spreads = [float(table.std()) for table in self.tables()]
        factors = [2.0 ** round(math.log2(spread / spreads[0])) for spread in spreads]
        return torch.cat([torch.full((width,), f) for width, f in zip(self.widths.values(), factors, strict=True)])

    def split(self, P: Tensor) -> Mapping[str, Tensor]:
        """Slot → the vectors of that text encoder, shape (N, its width)."""
        return dict(zip(self.slots, torch.split(P, list(self.widths.values()), dim=1), strict=True))

    def tokenize(self, prompts: Sequence[str], n: int) -> Tensor:
        """Turn prompts into token ids with room for n prefix vectors, shape (B, S, L); see `Family.tokenize`."""
        return self._family.tokenize(prompts, n)

    def embed(self, ids: Tensor, P: Tensor | None = None) -> Any:
        """What the denoiser is told: see `Family.told`.

        Args:
            ids: Shape (B, S, L), from `tokenize`; −k stands for row k of the prefix.
            P: Shape (N, D); gradients flow to it. None where the ids hold no prefix.
        """
        return self._family.told(ids, {} if P is None else self.split(P))
