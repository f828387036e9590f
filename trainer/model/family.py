"""What training and evaluation have to know of a family of models. `families` says which there are.

Letters: B prompts or pictures, S text encoders, L places in the longest row, N prefix vectors; latents (C, H, W). P is
the prefix, (N, D): a row holds the vector of each text encoder, one beside the other, so D is the sum of their widths.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from apl_guard.adapters.diffusers.view import encoders_of
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.condition import Condition, Prompts
from apl_guard.trainer.model.diffusion import Process
from apl_guard.trainer.model.number_format import computing_in, precision_of

__all__ = ["Family", "require"]


class Family(ABC):
    """A model of one family, as the options of a run ask it.

    Args:
        pipe: The model.
        config: Size of pictures, length of rows, guidance and number format.

    Raises:
        ConfigInvalid: The options do not fit the model.
    """

    network_name: ClassVar[str]
    """Which component denoises."""
    protocol_sampler: ClassVar[Any] = None
    """The scheduler with which the protocol of the paper's authors draws; None: the model's own."""
    draws_singly: ClassVar[bool] = False
    """Whether an evaluation has it draw one picture after the other."""

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        self.pipe = pipe
        self.config = config
        if self.side % self.unit:
            raise ConfigInvalid(f"found {self.side}; expected a multiple of {self.unit} pixels", where="picture_size")

    @classmethod
    @abstractmethod
    def check(cls, pipe: Any, where: str, expected: str) -> None:
        """Make sure that a pipe is of this family.

        Raises:
            ModelInvalid: It is not.
        """

    @cached_property
    @abstractmethod
    def process(self) -> Process:
        """How noise enters its latents, and what it says of them."""

    @property
    @abstractmethod
    def own_side(self) -> int:
        """The side of the pictures that it draws unless told otherwise, in pixels."""

    @property
    def t5_length(self) -> int | None:
        """How many places T5 has for a prompt; None where there can be no T5."""
        return None

    @property
    def parts(self) -> dict[str, tuple[Any, Any]]:
        """Slot → its text encoder and its tokenizer."""
        found = {e.slot: (e.text_encoder, e.tokenizer) for e in encoders_of(self.pipe)}
        return {slot: found[slot] for slot in self.slots}

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers, in the order of the slots."""
        return [tokenizer for _, tokenizer in self.parts.values()]

    @cached_property
    def widths(self) -> dict[str, int]:
        """Slot → the width of its token embeddings."""
        return {slot: token_embedding(encoder).embedding_dim for slot, (encoder, _) in self.parts.items()}

    @property
    def tables(self) -> list[Tensor]:
        """The token embeddings of each text encoder, shape (V, its width), float32."""
        return [token_embedding(text_encoder).weight.detach().float() for text_encoder, _ in self.parts.values()]

    def split(self, P: Tensor) -> Mapping[str, Tensor]:
        """Slot → the vectors of that text encoder, shape (N, its width)."""
        return dict(zip(self.slots, torch.split(P, list(self.widths.values()), dim=1), strict=True))

    def scales(self) -> Tensor:
        """How large a step is in each column of P, shape (D,): 1 for the first text encoder, and for the others as
        their token embeddings are larger or smaller. Vectors that move too little learn nothing, others break.

        Powers of two, so that dividing by them and multiplying again gives the same bits.
        """
        spreads = [float(table.std()) for table in self.tables]
        factors = [2.0 ** round(math.log2(spread / spreads[0])) for spread in spreads]
        return torch.cat([torch.full((width,), f) for width, f in zip(self.widths.values(), factors, strict=True)])

    @property
    @abstractmethod
    def unit(self) -> int:
        """The side of a picture is a multiple of so many pixels."""

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The slots of the text encoders that read the prompt."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the latents of one picture: (C, H, W), unless the pipeline lays them otherwise."""

    @property
    @abstractmethod
    def part_names(self) -> tuple[str, ...]:
        """Of the components that make its pictures."""

    @property
    @abstractmethod
    def guidance(self) -> float:
        """How strongly the prompt guides the pictures of a run."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """How many answers of the denoiser a denoising step takes."""

    @property
    @abstractmethod
    def call(self) -> dict[str, Any]:
        """The arguments with which the pipe draws as the options of the run say."""

    @abstractmethod
    def lengths(self) -> dict[str, int]:
        """Slot → how many places a row of its text encoder has; empty where rows are as long as they must be."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str], n: int) -> Tensor:
        """Turn prompts into numbers that `embed` understands, with room for n prefix vectors, shape (B, S, L).

        Raises:
            PrefixInvalid: The prefix leaves no room for a prompt.
            InvalidInput: There are no prompts.
        """

    @abstractmethod
    def told(self, ids: Tensor, vectors: Mapping[str, Tensor]) -> Condition | Prompts:
        """The same as `embed`, where the prefix is slot → shape (N, width of this slot); empty for none."""

    @abstractmethod
    def draw_latents(self, texts: Sequence[str], steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Let the pipe draw prompts as the options of the run say.

        Args:
            texts: B prompts.
            steps: Denoising steps.
            generators: Where the noise of each comes from.

        Returns:
            Clean latents, shape (B, C, H, W).
        """

    @abstractmethod
    def draw(self, c: Any, steps: int, generators: Sequence[torch.Generator]) -> list[Any]:
        """The pictures of what the pipe is told of prompts, as images of PIL; arguments as for `draw_latents`."""

    @abstractmethod
    def latents_of(self, pixels: Tensor) -> Tensor:
        """Clean latents of pictures.

        Args:
            pixels: Shape (B, 3, side, side), from −1 to 1.

        Returns:
            z, shape (B, C, H, W), float32, on the CPU.

        Raises:
            ConfigInvalid: Only the pipeline itself knows how they lie.
        """

    @abstractmethod
    def ask(self, z_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """One pass of the denoiser, called as the pipeline calls it; arguments as for `predict`."""

    def embed(self, ids: Tensor, P: Tensor | None = None) -> Any:
        """c: what the denoiser is told of prompts.

        Args:
            ids: From `tokenize`, shape (B, S, L); −k stands for row k of the prefix.
            P: Shape (N, D); gradients flow to it. None where the ids hold no prefix.
        """
        return self.told(ids, {} if P is None else self.split(P))

    def predict(self, z_t: Tensor, t: Tensor, c: Condition | Prompts) -> Tensor:
        """ε(z_t, t, c): what the model says.

        Args:
            z_t: Noised latents, shape (B, C, H, W).
            t: Noise levels, shape (B,).
            c: What the denoiser is told of the prompts.

        Returns:
            Shape (B, C, H, W), float32.
        """
        with self.cast():
            return self.ask(z_t, t, c).float()

    @property
    def network(self) -> Any:
        """Who denoises."""
        return getattr(self.pipe, self.network_name)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What a pass computes in: the weights' own format if that is of 16 bits, else what is wished for."""
        own: torch.dtype = self.network.dtype
        return own if own != torch.float32 else precision_of(self.device, self.config.precision)

    def cast(self) -> AbstractContextManager[Any]:
        """While this is in force, networks compute in `dtype`."""
        return computing_in(self.dtype, self.device)

    def mixed(self) -> AbstractContextManager[Any]:
        """While this is in force, the pipe draws though its denoiser and its text encoders are of two formats."""
        is_one = self.network.dtype == getattr(self.pipe, self.slots[0]).dtype
        return nullcontext() if is_one else self.cast()

    @property
    def side(self) -> int:
        """The side of the pictures of a run, in pixels."""
        return self.config.picture_size or self.own_side

    def guidance_of_protocol(self, guidance: float) -> float:
        """The guidance with which a protocol draws that was made for classifier-free guidance of this strength."""
        return guidance

    def guided(self, guidance: float) -> dict[str, Any]:
        """The arguments with which the pipe draws with this guidance."""
        return {"guidance_scale": guidance}

    @property
    def beside_weights(self) -> list[Any]:
        """What decides its pictures besides weights, schedule and adapters."""
        return []

    @contextmanager
    def quick(self) -> Iterator[None]:
        """While this is in force, gradients through the denoiser are computed in the quickest way."""
        yield

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """While this is in force, activations are computed again in the backward pass.

        Raises:
            ConfigInvalid: The denoiser cannot do so.
        """
        network = self.network
        if network.is_gradient_checkpointing:  # the user's own
            yield
            return
        if not network._supports_gradient_checkpointing:
            msg = f"{type(network).__name__} cannot compute activations again; expected false"
            raise ConfigInvalid(msg, where="gradient_checkpointing")
        network.enable_gradient_checkpointing()
        try:
            yield
        finally:
            network.disable_gradient_checkpointing()


def require(pipe: Any, parts: tuple[str, ...], where: str, expected: str) -> None:
    """Make sure that a pipe has all of some components.

    Raises:
        ModelInvalid: One is missing.
    """
    for part in parts:
        if getattr(pipe, part, None) is None:
            raise ModelInvalid(f"this {type(pipe).__name__} has no {part}; {expected}", where=where)
