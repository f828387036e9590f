"""The channels of a call that no argument has a name for: they follow from values, from what prompts say, and from what
is in the pipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from apl_guard.adapters.inject.mark import new_mark
from apl_guard.adapters.inject.prefix_tokenizer import prefix_tokenizer
from apl_guard.adapters.inject.private_tokenizer import private_copy
from apl_guard.adapters.prompts.forms import cleaned_forms
from apl_guard.encoder.anatomy import has_parameter_named
from apl_guard.request import PROMPT_CHANNELS, Channel, Reading

from .arguments import reads_early_layers
from .cleaning import MOST_CHARACTERS, cleaner_of
from .guidance import bends_steps, turns_guidance_round
from .view import encoders_of

__all__ = ["as_tokenized", "has_adapter_weights", "implied", "said"]

_NEGATIVE = {
    Channel.NEGATIVE_PROMPT,
    Channel.NEGATIVE_PROMPT_2,
    Channel.NEGATIVE_PROMPT_3,
    Channel.NEGATIVE_PROMPT_4,
    Channel.NEGATIVE_PROMPT_EMBEDS,
}


# How LoRA and Custom Diffusion, which diffusers loads without peft, call the weights that they add.
_ADDED = ("lora_", "custom_diffusion")


def implied(
    pipe: DiffusionPipeline,
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
    text: Mapping[Channel, tuple[str, ...]],
    used: set[Channel],
) -> set[Channel]:
    """The channels that no argument names: they follow from values, or from the pipe itself.

    Args:
        pipe: The pipe.
        defaults: Argument → default, of its call.
        arguments: Argument → value, of this call.
        text: Text channel → its texts.
        used: The channels that arguments name.
    """
    found: set[Channel] = set()
    negative = [channel for channel in used & _NEGATIVE if channel not in text or any(text[channel])]
    configs = [part.config for part in pipe.components.values() if isinstance(part, SchedulerMixin)]
    is_bent = any(bends_steps(arguments, config) for config in configs)
    if is_bent or turns_guidance_round(arguments, defaults, with_negative=bool(negative)):
        found.add(Channel.GUIDANCE)
    if reads_early_layers(arguments, defaults):
        found.add(Channel.ATTENTION)
    if has_adapter_weights(pipe):
        found.add(Channel.ADAPTER_WEIGHTS)
    return found


def said(
    pipe: DiffusionPipeline, arguments: Mapping[str, Any], text: Mapping[Channel, tuple[str, ...]]
) -> set[Channel]:
    """The channels that prompts open by what they say, or by what is made of them on their way.

    Args:
        pipe: The pipe, whose tokenizers say which tokens are special and which words were added.
        arguments: Argument → value, of this call, defaults included.
        text: Text channel → its texts.
    """
    found: set[Channel] = set()
    forms = {form for channel in PROMPT_CHANNELS for t in text.get(channel, ()) for form in cleaned_forms(t)}
    if (cleaner := cleaner_of(pipe, arguments)) is not None:
        if any(len(form) > MOST_CHARACTERS for form in forms):
            found.add(Channel.PROMPT_SYNTAX)
        forms |= {cleaner(form) for form in forms if len(form) <= MOST_CHARACTERS}
    prompts, tokens = sorted(forms), _turn_tokens(pipe)
    if any(token in prompt for prompt in prompts for token in tokens):
        found.add(Channel.PROMPT_SYNTAX)
    if any(_has_learned_words(e.tokenizer, prompts) for e in encoders_of(pipe)):
        found.add(Channel.TEXTUAL_INVERSION)
    return found


def as_tokenized(pipe: DiffusionPipeline, text: str) -> list[Reading]:
    """What each tokenizer of a pipe reads in a text. Some mend it, and special tokens in it stand for no text, nor do
    letters that a tokenizer does not know."""
    return [reading for e in encoders_of(pipe) for reading in _as_read(e.tokenizer, text)]


def _as_read(tokenizer: Any, text: str) -> Iterator[Reading]:
    private, lock = private_copy(tokenizer)
    with lock:
        read: str = private.decode(private(text, add_special_tokens=False, verbose=False)["input_ids"])
    tokens = sorted(map(re.escape, _special_tokens_of(tokenizer)), key=len, reverse=True)
    special = re.compile("|".join(tokens) or "(?!)", re.IGNORECASE)
    # Tokenizers with a token for letters that they do not know mend nothing; those letters shall stay, too.
    loses_letters = tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token
    if loses_letters and tokenizer.unk_token in read:
        read = text
        if tokenizer.is_fast:
            with lock:
                encoded = private(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            unknown = [span for id, span in found if id == private.unk_token_id]
            yield _without(text, [*unknown, *(match.span() for match in special.finditer(text))])
    yield Reading(special.sub(" ", read))


def _without(text: str, spans: list[tuple[int, int]]) -> Reading:
    """A text with a blank in place of each of its parts that says nothing."""
    letters = list(text)
    for start, end in spans:
        letters[start:end] = " " * (end - start)
    kept = [i for i, letter in enumerate(letters) if letter != " " or (i and letters[i - 1] != " ")]
    return Reading("".join(letters[i] for i in kept), tuple(kept))


def _special_tokens_of(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _turn_tokens(pipe: DiffusionPipeline) -> set[str]:
    """Special tokens of the tokenizers that are used with a chat template."""
    chatty = [e.tokenizer for e in encoders_of(pipe) if e.has_template or _knows_turns(e.tokenizer)]
    return {token for tokenizer in chatty for token in _special_tokens_of(tokenizer)}


def _has_learned_words(tokenizer: Any, prompts: list[str]) -> bool:
    """Whether a prompt says a word that was added to the vocabulary, as `load_textual_inversion` adds words."""
    learned = {i for i, token in tokenizer.added_tokens_decoder.items() if not token.special}
    learned -= set(tokenizer.all_special_ids)  # some tokenizers do not say of their end token that it is special
    if not learned or not prompts:
        return False
    # A private copy: the state of a fast tokenizer is shared between threads.
    rows = prefix_tokenizer(tokenizer, new_mark(), 0)(prompts)["input_ids"]
    return any(not learned.isdisjoint(row) for row in rows)


def has_adapter_weights(pipe: DiffusionPipeline) -> bool:
    """Whether LoRA or similar weights are in any model of a pipe."""
    models = [model for model in pipe.components.values() if isinstance(model, nn.Module)]
    return any(
        getattr(model, "peft_config", None) or any(has_parameter_named(part, model) for part in _ADDED)
        for model in models
    )


def _knows_turns(tokenizer: Any) -> bool:
    """Whether it is a tokenizer of Qwen, the turns of whose template some pipelines write themselves."""
    return tokenizer.convert_tokens_to_ids("<|im_start|>") not in (None, tokenizer.unk_token_id)
