"""The text encoders of a model side by side: prompts in, what the UNet is told of them out.

Stable Diffusion has one. SDXL has two; their states stand side by side in each place of the row, and the second
also gives a pooled vector of the whole prompt.

Letters: B prompts, S text encoders, L places in a row, N prefix vectors. P is the prefix, (N, D): each row holds the
vector of each text encoder, one beside the other, so D is the sum of their widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apl_guard.adapters.inject import embed, injected, tokenize_with_prefix
from apl_guard.encoder.token_embedding import token_embedding

__all__ = ["Condition", "Encoders", "is_xl", "slots_of"]


def is_xl(pipe: Any) -> bool:
    """Whether the UNet wants what that of SDXL wants: a pooled vector, and sizes of the picture."""
    return bool(getattr(pipe.unet.config, "addition_embed_type", None) == "text_time")


def slots_of(pipe: Any) -> tuple[str, ...]:
    """The slots of the text encoders that a pipe has, of the two that SDXL has."""
    return tuple(s for s in ("text_encoder", "text_encoder_2") if getattr(pipe, s, None) is not None)


@dataclass(frozen=True)
class Condition:
    """c: what the UNet is told of B prompts."""

    hidden: Tensor
    """Shape (B, L, D′): the states of the text encoders."""
    pooled: Tensor | None = None
    """Shape (B, D″), for SDXL."""
    sizes: Tensor | None = None
    """Shape (B, 6), for SDXL: height and width in pixels, where the picture is cut, height and width again."""

    def __getitem__(self, rows: Any) -> Condition:
        """Some of the prompts."""
        pooled, sizes = (None if part is None else part[rows] for part in (self.pooled, self.sizes))
        return Condition(self.hidden[rows], pooled, sizes)

    def __len__(self) -> int:
        return len(self.hidden)

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """Several, one behind the other.

        Example:
            >>> one = Condition(torch.zeros(1, 77, 8))
            >>> len(Condition.cat([one, one]))
            2
        """

        def joined(parts: list[Tensor | None]) -> Tensor | None:
            found = [part for part in parts if part is not None]
            return torch.cat(found) if found else None

        hidden = torch.cat([condition.hidden for condition in conditions])
        pooled = joined([condition.pooled for condition in conditions])
        return Condition(hidden, pooled, joined([condition.sizes for condition in conditions]))

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The arguments of a call of the pipe that draws these prompts."""
        given = {"prompt_embeds": self.hidden}
        return given if self.pooled is None else {**given, "pooled_prompt_embeds": self.pooled}


class Encoders:
    """The text encoders of a model.

    Args:
        pipe: A model that `open_pipe` opened.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> encoders = Encoders(tiny_pipe(family="stable_diffusion_xl"))
        >>> encoders.widths
        {'text_encoder': 32, 'text_encoder_2': 32}
        >>> ids = encoders.tokenize(["a photo of a man"], n=4)
        >>> ids.shape, encoders.embed(ids, torch.randn(4, 64)).hidden.shape
        (torch.Size([1, 2, 77]), torch.Size([1, 77, 64]))
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.slots = slots_of(pipe)
        self.tokenizers: list[Any] = [getattr(pipe, slot.replace("text_encoder", "tokenizer")) for slot in self.slots]
        self._text_encoders: list[Any] = [getattr(pipe, slot) for slot in self.slots]
        self.widths: dict[str, int] = {
            slot: token_embedding(text_encoder).embedding_dim
            for slot, text_encoder in zip(self.slots, self._text_encoders, strict=True)
        }

    @property
    def parts(self) -> dict[str, tuple[Any, Any]]:
        """Slot → its text encoder and its tokenizer."""
        found = zip(self._text_encoders, self.tokenizers, strict=True)
        return dict(zip(self.slots, found, strict=True))

    @property
    def room(self) -> int:
        """How many places a row has: the fewest of any text encoder."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers)

    def tables(self) -> list[Tensor]:
        """The token embeddings of each text encoder, shape (V, its width), float32."""
        return [token_embedding(text_encoder).weight.detach().float() for text_encoder in self._text_encoders]

    def split(self, P: Tensor) -> Mapping[str, Tensor]:
        """Slot → the vectors of that text encoder, shape (N, its width)."""
        return dict(zip(self.slots, torch.split(P, list(self.widths.values()), dim=1), strict=True))

    def tokenize(self, prompts: Sequence[str], n: int) -> Tensor:
        """Turn prompts into token ids with room for n prefix vectors, shape (B, S, L); see `tokenize_with_prefix`.

        Raises:
            PrefixInvalid: The prefix leaves no room for a prompt.
            InvalidInput: There are no prompts.
        """
        return torch.stack([tokenize_with_prefix(tokenizer, prompts, n) for tokenizer in self.tokenizers], dim=1)

    def embed(self, ids: Tensor, P: Tensor | None = None) -> Condition:
        """Run the text encoders.

        Args:
            ids: Shape (B, S, L), from `tokenize`; −k stands for row k of the prefix.
            P: Shape (N, D); gradients flow to it. None where the ids hold no prefix.
        """
        if not is_xl(self._pipe):
            return Condition(embed(self._text_encoders[0], ids[:, 0], P))
        vectors = {} if P is None else self.split(P)
        hidden, pooled = [], None
        for k, (slot, text_encoder) in enumerate(zip(self.slots, self._text_encoders, strict=True)):
            row = ids[:, k].to(token_embedding(text_encoder).weight.device)
            if slot in vectors:
                with injected(text_encoder, vectors[slot]):
                    output = text_encoder(row, output_hidden_states=True)
            else:
                output = text_encoder(row, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            if output[0].ndim == 2:  # with a projection: the pooled vector comes first
                pooled = output[0]
        side = self._pipe.unet.config.sample_size * self._pipe.vae_scale_factor
        sizes = hidden[0].new_tensor([side, side, 0, 0, side, side]).repeat(len(ids), 1)
        return Condition(torch.cat(hidden, dim=-1), pooled, sizes)
