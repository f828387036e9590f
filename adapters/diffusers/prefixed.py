"""A call of a pipeline with a prefix in front of its prompts: what is called, with what, and what arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from apl_guard.adapters.inject.injection import injected
from apl_guard.adapters.inject.mark import new_mark
from apl_guard.adapters.inject.origin import Source
from apl_guard.adapters.inject.prefix_tokenizer import prefix_tokenizer
from apl_guard.adapters.inject.received import Received
from apl_guard.request import GenerationRequest

from .marking import check_unmarked, marked, part_of_prompts
from .view import Encoder, compare_layers, encoders_of, view_of

__all__ = ["Prefixed", "prefixed"]


@dataclass(frozen=True)
class Prefixed:
    """What takes the place of the pipe and of the arguments of its call."""

    view: Any
    texts: dict[str, str | list[str]]
    """The text arguments, with marks in them."""
    received: Mapping[str, Received]
    """Slot → what its text encoder received so far."""
    tokenizers: Sequence[tuple[Encoder | None, Any]]
    """Each text encoder with its tokenizer in the view; None for one that gets no prefix."""


@contextmanager
def prefixed(
    pipe: Any, request: GenerationRequest, vectors: Mapping[str, Tensor], *, compare: bool
) -> Iterator[Prefixed]:
    """While this is in force, a call of the view with the texts has the prefix in front of every prompt.

    Args:
        pipe: The pipe.
        request: The call.
        vectors: Slot → the prefix, shape (N, D of this slot).
        compare: Whether each text encoder also tells how far the prefix moves its answers.

    Raises:
        PrefixInvalid: The prefix has another width than the text encoder.
        PrefixNotApplied: A token embedding is of a kind that no prefix can be put into.
    """
    known = {id(e.text_encoder): e for e in encoders_of(pipe)}
    guarded = {key: e for key, e in known.items() if e.slot in vectors}
    mark, source = new_mark(), Source(new_mark(), part_of_prompts(request))
    tokenizers: list[tuple[Encoder | None, Any]] = []

    def exchange(text_encoder: nn.Module | None, tokenizer: Any) -> Any:
        encoder = guarded.get(id(text_encoder))
        n = 0 if encoder is None else len(vectors[encoder.slot])
        made = prefix_tokenizer(tokenizer, mark, n, source, may_read=id(text_encoder) in known)
        tokenizers.append((encoder, made))
        return made

    view = view_of(pipe, exchange)
    check_unmarked(view, mark)
    with ExitStack() as stack:
        received: dict[str, Received] = {}
        for e in guarded.values():
            block = injected(e.text_encoder, vectors[e.slot], compare=compare, padding=e.tokenizer.pad_token_id)
            received[e.slot] = stack.enter_context(block)
        if compare:
            compare_layers(view, received)
        yield Prefixed(view, marked(request, mark, source), received, tokenizers)
