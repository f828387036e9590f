"""Putting a prefix into a text encoder, for one call.

The prefix goes in as token embeddings directly before the user's first token, and everything behind it moves
up. For CLIP, whose rows have L = 77 places:

    [start, P₁ … P_N, the user's tokens cut at their end, end, padding …]

1. The tokenizer writes the row with N *sentinel* ids, −1 … −N, in the places of the prefix.
2. During one call the embedding layer of the text encoder is of a subclass that puts the vectors where the
   sentinels are. Rows without sentinels come out bit for bit as ever, for every other user of the encoder.
3. It counts what it really received, and the text encoder tells how far its answer is from the one to the
   same row without the prefix. Both are the receipt.

Where this is not in force (a copied or swapped encoder) a negative id is an index error, never a silent pass.

Letters: B prompts, L tokens in a row, N prefix vectors, D width of the token embeddings.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import InvalidInput, PrefixInvalid, PrefixNotApplied
from apl_guard.forks import FreshLock

from .mark import new_mark
from .origin import decoded
from .prefix_tokenizer import prefix_tokenizer
from .received import Received
from .without_prefix import without_prefix

__all__ = ["embed", "encode_prompts", "injected", "run_encoder", "tokenize_with_prefix"]


def encode_prompts(
    text_encoder: nn.Module, tokenizer: Any, prompts: Sequence[str], vectors: Tensor | None = None
) -> Tensor:
    """Compute the prompt embeds that a pipeline for Stable Diffusion would compute, with a prefix or without.

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


def tokenize_with_prefix(tokenizer: Any, prompts: Sequence[str], n: int, length: int | None = None) -> Tensor:
    """Turn prompts into token ids with room for the prefix.

    Args:
        tokenizer: The tokenizer of the text encoder.
        prompts: B texts.
        n: Number of prefix vectors, N; 0 gives the ids that the pipeline itself would use.
        length: L; default: the tokenizer's own.

    Returns:
        Shape (B, L), int64: start, −1 … −N, the user's tokens cut at their end, end, padding. Of T5, which has no
        start, −1 … −N come first.

    Raises:
        PrefixInvalid: The prefix leaves no room for a prompt.
        InvalidInput: There are no prompts.
    """
    if isinstance(prompts, str) or not prompts:
        raise InvalidInput("expected a list of at least one text", where="prompts")
    mark = new_mark()
    with_room = prefix_tokenizer(tokenizer, mark, n)
    texts = [f"{mark} {text}" for text in prompts]
    rows = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    input_ids: Tensor = with_room(texts, **rows)["input_ids"]
    return input_ids


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
    hidden: Tensor = run_encoder(encoder, input_ids, vectors)[0]
    return hidden


def run_encoder(text_encoder: Any, input_ids: Tensor, vectors: Tensor | None = None, **options: Any) -> Any:
    """The whole answer of a text encoder of any family to ids from `tokenize_with_prefix`.

    Args:
        text_encoder: The text encoder.
        input_ids: Shape (B, L); −k stands for row k of the prefix.
        vectors: The prefix, shape (N, D); gradients flow to it. None where the ids hold no prefix.
        options: Of its call, such as `output_hidden_states`.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder.
    """
    input_ids = input_ids.to(token_embedding(text_encoder).weight.device)
    with nullcontext() if vectors is None else injected(text_encoder, vectors):
        return text_encoder(input_ids, **options)


@contextmanager
def injected(
    text_encoder: nn.Module, vectors: Tensor, *, compare: bool = False, padding: int | None = None
) -> Iterator[Received]:
    """Put the prefix where sentinel ids are, in this thread and this text encoder, while the block runs.

    Args:
        text_encoder: The text encoder that will be called inside the block.
        vectors: The prefix, shape (N, D).
        compare: Run the text encoder a second time on each batch that holds a prefix, without it, to measure
            how much the prefix changes.
        padding: Id of the padding token, for that second time.

    Yields:
        What the text encoder received so far.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder.
        PrefixNotApplied: The token embedding is of a kind that no prefix can be put into.
    """
    layers = _embedding_layers(text_encoder)
    width = layers[0].embedding_dim
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise PrefixInvalid(f"prefix of shape {tuple(vectors.shape)}; this text encoder needs (N, {width})")
    received = Received(vectors, padding)
    gates: list[tuple[nn.Module, type[Any]]] = [(layer, _EmbeddingGate) for layer in layers]
    if compare:
        gates.append((text_encoder, _EncoderGate))
    token = _active.set({**(_active.get() or {}), **{id(module): received for module, _ in gates}})
    opened: list[nn.Module] = []
    try:
        for module, gate in gates:
            _open(module, gate)
            opened.append(module)
        yield received
    finally:
        _active.reset(token)
        for module in opened:
            _close(module)


# Which prefix is in force for which module. A context variable, so that threads and asyncio tasks with
# different guards on one text encoder do not see each other.
_active: ContextVar[Mapping[int, Received] | None] = ContextVar("apl_guard_active_prefixes", default=None)
_gates = FreshLock()
_USES = "_apl_guard_uses"


def _embedding_layers(text_encoder: nn.Module) -> list[nn.Embedding]:
    """The token embedding, under each of its names: some encoders hold one table in two modules and call
    one of the two only."""
    table = token_embedding(text_encoder)
    if not isinstance(table, nn.Embedding):
        raise PrefixNotApplied(
            f"the token embedding of {type(text_encoder).__name__} is of class {type(table).__name__}; expected "
            "torch.nn.Embedding, so leave that layer as it is where others are exchanged, by quantisation perhaps"
        )
    return [
        module
        for module in text_encoder.modules()
        if isinstance(module, nn.Embedding) and (module is table or _shares_table(module, table))
    ]


def _shares_table(module: nn.Embedding, table: nn.Embedding) -> bool:
    if table.weight.is_meta:  # offloaded layer by layer: each holds a stand-in of its own
        return module.weight.shape == table.weight.shape
    return module.weight is table.weight


class _EmbeddingGate:
    """Mixed into the class of an embedding layer while a prefix is in force.

    Only `__call__` changes: the object, its weight, hooks and state dict stay what they are.
    """

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        received = (_active.get() or {}).get(id(self))
        if received is None:
            return super().__call__(input, *args, **kwargs)  # type: ignore[misc,no-any-return]
        received.take(input)
        input = decoded(input)
        is_prefix = input < 0  # (B, L)
        embeddings: Tensor = super().__call__(input.clamp(min=0), *args, **kwargs)  # type: ignore[misc]
        vectors = received.vectors.to(embeddings)  # (N, D)
        rows = vectors[torch.where(is_prefix, -input - 1, 0)]  # (B, L, D)
        return torch.where(is_prefix.unsqueeze(-1), rows, embeddings)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy made during a call is a plain layer, where a sentinel is an index error.
        return _reduce(self)


# Text encoders that answer in the shape (L, B, D).
_TOKENS_FIRST = {"ChatGLMModel"}


class _EncoderGate:
    """Mixed into the class of a text encoder while its answers are compared. It changes none of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiled: Callable[..., Any] = super().__call__  # type: ignore[misc]
        original = _uncompiled(self, compiled)
        called = original if _may_be_whole_graph(self) else compiled
        received = (_active.get() or {}).get(id(self))
        coded = kwargs.get("input_ids", args[0] if args else None)
        if received is None or not isinstance(coded, Tensor):
            return called(*args, **kwargs)
        input_ids = decoded(coded)
        if "input_ids" in kwargs:
            kwargs["input_ids"] = input_ids
        else:
            args = (input_ids, *args[1:])
        with received.reading(coded):
            output = called(*args, **kwargs)
        has_prefix = (input_ids < 0).any(-1)
        if has_prefix.any():
            plain_args, plain_kwargs = without_prefix(args, kwargs, received.padding or 0)
            with received.comparing():
                # Never compiled: with CUDA graphs a second answer is written over the first.
                plain = original(*plain_args, **plain_kwargs)
            received.compare(output, plain, has_prefix, tokens_first=type(self).__name__ in _TOKENS_FIRST)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduce(self)


def _uncompiled(text_encoder: Any, called: Callable[..., Any]) -> Callable[..., Any]:
    """How a text encoder is called as it was before `torch.compile(text_encoder)` or `text_encoder.compile()`."""
    original: Callable[..., Any] = text_encoder._call_impl if _is_compiled_in_place(text_encoder) else called
    return getattr(text_encoder, "_orig_mod", original)


def _is_compiled_in_place(text_encoder: Any) -> bool:
    return getattr(text_encoder, "_compiled_call_impl", None) is not None


def _may_be_whole_graph(text_encoder: Any) -> bool:
    """Whether it may be compiled with `fullgraph=True`: the gate breaks the graph, so that would raise. One that was
    compiled in place does not say."""
    is_whole = getattr(getattr(text_encoder, "dynamo_ctx", None), "fullgraph", False)
    return bool(is_whole) or _is_compiled_in_place(text_encoder)


def _reduce(module: Any) -> Any:
    state = {key: value for key, value in module.__dict__.items() if key != _USES}
    return _new, (_plain_class(module),), state


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


@functools.cache
def _gated_class(cls: Any, gate: Any, compiled: bool) -> Any:
    # The same name, because transformers looks at it to find out what a class can return.
    gated: Any = type(cls.__name__, (gate, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
    if compiled and gate is _EmbeddingGate:
        # The compiler must look the prefix up on each call, not bake in the one that it saw first.
        disable: Any = torch.compiler.disable
        gated.__call__ = disable(gate.__call__)
    return gated


def _plain_class(module: nn.Module) -> Any:
    return type(module).__mro__[2]


def _open(module: nn.Module, gate: Any) -> None:
    with _gates.lock:
        module.__dict__[_USES] = module.__dict__.get(_USES, 0) + 1
        # The class itself is asked, not the count: an exception may come between the two, as that of a time limit does.
        if not isinstance(module, gate):
            plain: Any = type(module)
            module.__class__ = _gated_class(plain, gate, "torch._dynamo" in sys.modules)


def _close(module: nn.Module) -> None:
    with _gates.lock:
        uses = module.__dict__.pop(_USES) - 1
        if uses:
            module.__dict__[_USES] = uses
        elif isinstance(module, _EmbeddingGate | _EncoderGate):
            module.__class__ = _plain_class(module)
