"""What a guarded call sees in place of the pipe.

A *view* is an object of the pipe's class that shares every model with it and owns its schedulers, guiders,
tokenizers and the state of the call. So calls in several threads do not disturb each other, and the pipe is the same
after the call as before. Pipes inside the pipe, as in the combined pipelines of Kandinsky, get views too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from apl_guard.adapters.inject.layers import compared
from apl_guard.adapters.inject.received import Received

__all__ = ["Encoder", "compare_layers", "encoders_of", "unreadable_in", "view_of"]

_SLOT = re.compile(r"text_encoder(_\d+)?$")

# Method that runs the layers of a text encoder → the slot. That of Ideogram 4.
_RUNS_LAYERS = {"_get_text_encoder_hidden_states": "text_encoder"}


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a pipe, with the tokenizer that belongs to it."""

    slot: str
    text_encoder: nn.Module
    tokenizer: Any
    has_template: bool
    """Whether the tokenizer, or the processor that it is in, has a chat template."""


def encoders_of(pipe: DiffusionPipeline) -> tuple[Encoder, ...]:
    """The text encoders of a pipe that have a tokenizer, by slot. One in two slots counts for the first, and of a
    tokenizer and a processor the former."""
    found: dict[int, Encoder] = {}
    components = pipe.components  # put together anew each time that it is asked for
    for name, component in sorted(components.items(), key=lambda item: ("processor" in item[0], item[0])):
        tokenizer = _tokenizer_in(component)
        slot = _slot_for(name)
        text_encoder = components.get(slot)
        if tokenizer is None or not isinstance(text_encoder, nn.Module):
            continue
        known = found.get(id(text_encoder))
        if known is None or (name.endswith("tokenizer") and slot < known.slot):
            has_template = any(getattr(part, "chat_template", None) for part in (component, tokenizer))
            found[id(text_encoder)] = Encoder(slot, text_encoder, tokenizer, has_template)
    return tuple(sorted(found.values(), key=lambda encoder: encoder.slot))


def unreadable_in(pipe: DiffusionPipeline) -> tuple[str, ...]:
    """The text encoders of a pipe whose tokenizer, or who themselves, are of a kind that no prefix can be put into."""
    covered = {id(encoder.text_encoder) for encoder in encoders_of(pipe)}
    return tuple(
        name
        for name, component in sorted(pipe.components.items())
        if _SLOT.search(name) and component is not None and id(component) not in covered
    )


def view_of(pipe: Any, exchange: Callable[[nn.Module | None, Any], Any]) -> Any:
    """Make the view of a pipe.

    Args:
        pipe: The pipe.
        exchange: Takes a text encoder (None where the pipe has none in that place) and its tokenizer, and
            returns the tokenizer that the view shall have.
    """
    view = copy.copy(pipe)
    for name, part in list(vars(pipe).items()):
        made = _exchanged(pipe, name, part, exchange)
        if made is not part:
            # Not by assignment, which would also write to the configuration that pipe and view share.
            view.__dict__[name] = made
    if hasattr(pipe, "maybe_free_model_hooks"):
        # Offloading keeps its hooks on the real pipe.
        view.__dict__["maybe_free_model_hooks"] = pipe.maybe_free_model_hooks
    return view


def compare_layers(view: Any, received: Mapping[str, Received]) -> None:
    """Where a pipeline does not call its text encoder, have what the layers give compared in the method that runs them.

    Args:
        view: The view.
        received: Slot → what the text encoder in it receives.
    """
    for name, slot in _RUNS_LAYERS.items():
        if slot in received and (method := getattr(view, name, None)) is not None:
            view.__dict__[name] = compared(method, received[slot])


def _exchanged(pipe: Any, name: str, part: Any, exchange: Callable[[nn.Module | None, Any], Any]) -> Any:
    if isinstance(part, SchedulerMixin | BaseGuidance):  # both keep what belongs to one call
        return copy.deepcopy(part)
    if isinstance(part, DiffusionPipeline):
        return view_of(part, exchange)
    tokenizer = _tokenizer_in(part)
    if tokenizer is None:
        return part
    text_encoder = getattr(pipe, _slot_for(name), None)
    made = exchange(text_encoder if isinstance(text_encoder, nn.Module) else None, tokenizer)
    if tokenizer is part:
        return made
    processor = copy.copy(part)
    processor.tokenizer = made
    return processor


def _tokenizer_in(part: Any) -> Any:
    """The tokenizer that a component is, or holds as a processor for text and pictures does."""
    if isinstance(part, PreTrainedTokenizerBase):
        return part
    if isinstance(part, ProcessorMixin):
        inner = getattr(part, "tokenizer", None)
        return inner if isinstance(inner, PreTrainedTokenizerBase) else None
    return None


def _slot_for(name: str) -> str:
    """The slot that a tokenizer belongs to: `tokenizer_2` to `text_encoder_2`, `processor` to `text_encoder`."""
    return re.sub("tokenizer|processor", "text_encoder", name)
