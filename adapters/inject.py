"""How a prefix enters a text encoder. No other file knows this.

The prefix goes in as token embeddings after the start token, and everything behind it moves up:

    [start, P₁ … P_N, the user's tokens cut at their end, end, padding …]      L = 77 rows for CLIP

1. The tokenizer writes the row with N *sentinel* ids, −1 … −N, in the places of the prefix.
2. During one call the embedding layer of the text encoder is of a subclass that puts the vectors where the
   sentinels are. Rows without sentinels come out bit for bit as ever, for every other user of the encoder.
3. It counts what it really received. That count is the receipt.

Where this is not in force (a copied or swapped encoder) a negative id is an index error, never a silent pass.

Letters: B prompts, L tokens in a row, N prefix vectors, D width of the token embeddings.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from apl_guard.errors import InvalidInput, PrefixInvalid

from .sequence import frame_of, pad, sequence, token_ids

__all__ = ["embed", "encode_prompts", "injected", "tokenize_with_prefix"]


def encode_prompts(
    text_encoder: nn.Module, tokenizer: Any, prompts: Sequence[str], vectors: Tensor | None = None
) -> Tensor:
    """Compute the prompt embeds that the pipeline would compute, with a prefix in front or without.

    Args:
        text_encoder: A CLIP text model.
        tokenizer: Its tokenizer.
        prompts: B texts.
        vectors: The prefix, shape (N, D); gradients flow to it. None computes the plain prompt embeds.

    Returns:
        Shape (B, L, D): the last hidden state, in the text encoder's dtype and on its device.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder, or leaves no room for a prompt.
        InvalidInput: There are no prompts.
    """
    input_ids = tokenize_with_prefix(tokenizer, prompts, 0 if vectors is None else len(vectors))
    return embed(text_encoder, input_ids, vectors)


def tokenize_with_prefix(tokenizer: Any, prompts: Sequence[str], n: int) -> Tensor:
    """Turn prompts into token ids with room for the prefix.

    Args:
        tokenizer: The tokenizer of the text encoder.
        prompts: B texts.
        n: Number of prefix vectors, N; 0 gives the ids that the pipeline itself would use.

    Returns:
        Shape (B, L), int64: start, −1 … −N, the user's tokens cut at their end, end, padding.

    Raises:
        PrefixInvalid: The prefix leaves no room for a prompt.
        InvalidInput: There are no prompts, or the tokenizer is of another family.
    """
    if isinstance(prompts, str) or not prompts:
        raise InvalidInput("expected a list of at least one text", where="prompts")
    frame = frame_of(tokenizer)
    rows = [sequence(token_ids(tokenizer, text), frame, n, frame.length)[0] for text in prompts]
    return torch.tensor(pad(rows, frame, frame.length), dtype=torch.long)


def embed(text_encoder: nn.Module, input_ids: Tensor, vectors: Tensor | None = None) -> Tensor:
    """Run the text encoder on ids from `tokenize_with_prefix`.

    Args:
        text_encoder: A CLIP text model.
        input_ids: Shape (B, L); −k stands for row k of the prefix.
        vectors: The prefix, shape (N, D); gradients flow to it. None where the ids hold no prefix.

    Returns:
        Shape (B, L, D): the last hidden state.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder.
        InvalidInput: The text encoder is of a family that needs an attention mask.
    """
    encoder: Any = text_encoder
    if getattr(encoder.config, "use_attention_mask", False):
        raise InvalidInput("expected one that reads all of its rows; this one wants a mask", where="text_encoder")
    input_ids = input_ids.to(encoder.get_input_embeddings().weight.device)
    if vectors is None:
        return _hidden(encoder(input_ids))
    with injected(text_encoder, vectors):
        return _hidden(encoder(input_ids))


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0]
    return hidden


class Received:
    """What a text encoder really received during one call: for each row, the number of prefix vectors."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._counts: list[Tensor] = []

    def count(self, is_prefix: Tensor) -> None:
        # Kept as tensors: reading them now would make a GPU wait in the middle of a call.
        self._counts.append(is_prefix.sum(-1))

    @property
    def rows(self) -> tuple[int, ...]:
        """The number of prefix vectors in each row that had any, in the order of the calls."""
        return tuple(n for counts in self._counts for n in counts.reshape(-1).tolist() if n)


@contextmanager
def injected(text_encoder: nn.Module, vectors: Tensor) -> Iterator[Received]:
    """Put the prefix where sentinel ids are, in this thread and this text encoder, while the block runs.

    Args:
        text_encoder: The text encoder that will be called inside the block.
        vectors: The prefix, shape (N, D).

    Yields:
        What the text encoder received so far.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder.
    """
    layers = _embedding_layers(text_encoder)
    width = layers[0].embedding_dim
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise PrefixInvalid(f"prefix of shape {tuple(vectors.shape)}; this text encoder needs (N, {width})")
    received = Received(vectors)
    token = _active.set({**(_active.get() or {}), **{id(layer): received for layer in layers}})
    for layer in layers:
        _open_gate(layer)
    try:
        yield received
    finally:
        for layer in layers:
            _close_gate(layer)
        _active.reset(token)


# Which prefix is in force for which embedding layer. A context variable, so that threads and asyncio tasks
# with different guards on one text encoder do not see each other.
_active: ContextVar[Mapping[int, Received] | None] = ContextVar("apl_guard_active_prefixes", default=None)
_gates = threading.Lock()
_USES = "_apl_guard_uses"


def _embedding_layers(text_encoder: nn.Module) -> list[nn.Embedding]:
    """The token embedding, under each of its names: some encoders hold one table in two modules and call
    the one that `get_input_embeddings()` does not return."""
    encoder: Any = getattr(text_encoder, "_orig_mod", text_encoder)  # what torch.compile wrapped
    table = encoder.get_input_embeddings()
    return [
        module
        for module in encoder.modules()
        if isinstance(module, nn.Embedding) and (module is table or module.weight is table.weight)
    ]


class _Gate:
    """Mixed into the class of an embedding layer while a prefix is in force.

    Only `__call__` changes: the object, its weight, hooks and state dict stay what they are.
    """

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        received = (_active.get() or {}).get(id(self))
        if received is None:
            return super().__call__(input, *args, **kwargs)  # type: ignore[misc,no-any-return]
        is_prefix = input < 0  # (B, L)
        received.count(is_prefix)
        embeddings: Tensor = super().__call__(input.clamp(min=0), *args, **kwargs)  # type: ignore[misc]
        vectors = received.vectors.to(embeddings)  # (N, D)
        rows = vectors[torch.where(is_prefix, -input - 1, 0)]  # (B, L, D)
        return torch.where(is_prefix.unsqueeze(-1), rows, embeddings)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy made during a call is a plain layer, where a sentinel is an index error.
        state = {key: value for key, value in self.__dict__.items() if key != _USES}
        return _new, (type(self).__mro__[2],), state


def _new(cls: type[nn.Embedding]) -> nn.Embedding:
    return cls.__new__(cls)


@functools.cache
def _gated_class(cls: Any, compiled: bool) -> Any:
    gated = type(f"Gated{cls.__name__}", (_Gate, cls), {"__module__": cls.__module__})
    if compiled:
        # The compiler must look the prefix up on each call, not bake in the one that it saw first.
        gated.__call__ = torch.compiler.disable(_Gate.__call__)  # type: ignore
    return gated


def _open_gate(layer: nn.Embedding) -> None:
    with _gates:
        uses = layer.__dict__.get(_USES, 0)
        if not uses:
            plain: Any = type(layer)
            layer.__class__ = _gated_class(plain, "torch._dynamo" in sys.modules)
        layer.__dict__[_USES] = uses + 1


def _close_gate(layer: nn.Embedding) -> None:
    with _gates:
        uses = layer.__dict__.pop(_USES) - 1
        if uses:
            layer.__dict__[_USES] = uses
        else:
            layer.__class__ = type(layer).__mro__[2]
