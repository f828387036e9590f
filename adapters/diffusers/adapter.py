"""Pipelines of diffusers.

A guarded call runs the pipeline's own code, unchanged. The prompts carry a mark, the tokenizers turn the mark
into room for the prefix, and the text encoders put the prefix there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from diffusers import DiffusionPipeline

from apl_guard.adapters.inject.origin import is_of_prompt
from apl_guard.adapters.inject.received import Received
from apl_guard.adapters.prompts.forms import check_decided
from apl_guard.backend import Generation, Receipt
from apl_guard.encoder.fingerprint import Fingerprint, fingerprint
from apl_guard.encoder.traits import Likeness, Tier, compare
from apl_guard.encoder.weights import largest_norm
from apl_guard.errors import GuardUnavailable, PrefixNotApplied
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, argument_name, texts

from .arguments import TEXT, channel_of, check_not_rewritten, is_known
from .calling import run, signature_of
from .channels import as_tokenized, has_adapter_weights, implied, said
from .cleaning import cleaner_of, readings_of
from .families import check_supported
from .prefixed import prefixed
from .read_once import read_once
from .shared_models import with_models_alone
from .view import Encoder, encoders_of, unreadable_in, view_of

__all__ = ["DiffusersAdapter"]

_OLD_NAMES = {"callback", "callback_steps"}
_READABLE = {"config", "device", "dtype", "name_or_path", "scheduler", "vae_scale_factor"}
_WRITABLE = {"scheduler"}
# Methods that place or speed up the models. None of them encodes or generates.
_METHODS = {
    "disable_attention_slicing",
    "disable_vae_slicing",
    "disable_vae_tiling",
    "disable_xformers_memory_efficient_attention",
    "enable_attention_slicing",
    "enable_group_offload",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_vae_slicing",
    "enable_vae_tiling",
    "enable_xformers_memory_efficient_attention",
    "set_progress_bar_config",
    "to",
}


class DiffusersAdapter:
    """Makes a pipeline of diffusers fulfil `apl_guard.backend.Backend`.

    Args:
        pipe: The pipeline.

    Raises:
        InvalidInput: The pipeline is of a class that the guard cannot stand in front of. The message says why.
    """

    carries_prefix = True

    def __init__(self, pipe: DiffusionPipeline) -> None:
        check_supported(pipe)
        self._pipe = pipe
        self._class = type(pipe).__name__
        self._signature = signature_of(pipe)
        parameters = self._signature.parameters.values()
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.name = f"diffusers:{self._class}"

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the arguments of a call into channels and take a snapshot of them.

        Raises:
            InvalidInput: A prompt is no text, or an argument cannot be used with a guard at all.
            TypeError: The arguments do not fit the pipe's signature.
        """
        bound = self._signature.bind(self._pipe, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        arguments |= arguments.pop("kwargs", {})
        check_not_rewritten(self._pipe, self._defaults | arguments)
        text: dict[Channel, tuple[str, ...]] = {}
        used: set[Channel] = set()
        for name, value in arguments.items():
            arguments[name] = value = read_once(name, value)
            channel = channel_of(name, self._class)
            if channel is None or value is None or (type(value) is dict and not value):
                continue
            used.add(channel)
            if name in TEXT:
                text[channel] = texts(value, where=name)
                arguments[name] = text[channel][0] if isinstance(value, str) else list(text[channel])
        whole = self._defaults | arguments
        used |= implied(self._pipe, self._defaults, arguments, text, used) | said(self._pipe, whole, text)
        # Names may come from a request that a service passes on, so they are made safe for messages.
        unknown = tuple(argument_name(name) for name in arguments if not self._knows(name))
        slots = tuple(e.slot for e in encoders_of(self._pipe))
        readings = readings_of(cleaner_of(self._pipe, whole), lambda text: as_tokenized(self._pipe, text))
        return GenerationRequest(self.name, text, frozenset(used), unknown, arguments, slots, readings=readings)

    def fingerprints(self) -> Mapping[str, Fingerprint]:
        """Slot → fingerprint of each text encoder that is in the pipe now.

        Raises:
            GuardUnavailable: The pipe has no text encoder, or one that no prefix can be put into.
        """
        found = encoders_of(self._pipe)
        if not found:
            raise GuardUnavailable("the pipe has no text encoder or no tokenizer; a prefix needs both")
        if unreadable := unreadable_in(self._pipe):
            raise GuardUnavailable(
                f"{', '.join(unreadable)} would read prompts without a prefix: the guard knows text encoders that are "
                "modules of torch, each with a tokenizer of transformers"
            )
        return {e.slot: fingerprint(e.text_encoder, e.tokenizer) for e in found}

    def likeness(self, prefix: Prefix) -> Mapping[str, Likeness]:
        """Slot → how close the text encoder in it is to the one that this prefix was trained with."""
        made_for, traits = prefix.metadata.fingerprints, prefix.metadata.traits
        return {
            e.slot: compare(made_for[e.slot], traits.get(e.slot), e.text_encoder, e.tokenizer)
            for e in encoders_of(self._pipe)
            if e.slot in made_for
        }

    def check_prefix(self, prefix: Prefix) -> None:
        """Whether the vectors are of the size of token embeddings. Each call checks what the encoders received.

        Raises:
            PrefixInvalid: They are far larger.
        """
        for e in encoders_of(self._pipe):
            if e.slot in prefix.vectors:
                prefix.check_norms(e.slot, largest_norm(e.text_encoder))

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate, with the prefix in front of every prompt of this call only.

        Without a prefix this is the call of the bare pipe and nothing else.

        Raises:
            GuardUnavailable: The policy made prompts of the request that open a channel nobody decided about.
            PrefixNotApplied: The pipeline treats its prompts in a way that the guard does not know.
            PrefixInvalid: The prefix has another width than the text encoder, or leaves no room for a prompt.
            Exception: Whatever the pipe raises, unchanged.
        """
        check_decided(said(self._pipe, self._defaults | dict(request.arguments), request.text), request)
        arguments = {name: _copied(value) for name, value in request.arguments.items()}
        if prefix is None:
            return Generation(*self._draw(self._pipe, arguments))

        before = self._still_fits(prefix)
        with prefixed(self._pipe, request, prefix.vectors, compare=True) as call:
            began = perf_counter()
            as_asked = {name: arguments[name] for name in call.texts}
            output, images = self._draw(call.view, arguments | call.texts, as_asked=as_asked)
            seconds = perf_counter() - began
        _check_plain_rows(call.received, call.tokenizers)
        if self._has_new_weights(request) or self.fingerprints() != before:
            raise PrefixNotApplied("the pipe got other weights, or another tokenizer, while it drew")
        cuts = {
            encoder.slot: tokenizer.tokens_cut[-request.batch :]
            for encoder, tokenizer in call.tokenizers
            if encoder is not None and tokenizer.tokens_cut
        }
        receipt = Receipt(
            prefix_rows={slot: r.rows for slot, r in call.received.items()},
            tokens_cut={slot: cuts.get(slot, ()) for slot in call.received},
            change={slot: r.changes for slot, r in call.received.items()},
        )
        return Generation(output, images, receipt, seconds)

    def draw_plain(self, request: GenerationRequest) -> Generation:
        """Draw without the prefix, from random numbers of its own.

        Raises:
            GuardUnavailable: LoRA or similar weights came into the pipe since the request was read.
            Exception: Whatever the pipe raises, unchanged.
        """
        arguments = {name: _copied(value) for name, value in request.arguments.items()}
        if "generator" in self._signature.parameters:
            arguments["generator"] = torch.Generator().manual_seed(secrets.randbits(63))
        output, images = self._draw(view_of(self._pipe, lambda _, tokenizer: tokenizer), arguments)
        if self._has_new_weights(request):
            raise GuardUnavailable(
                "the pipe got LoRA or similar weights meanwhile, so nothing is drawn to compare with"
            )
        return Generation(output, images)

    def _draw(self, pipe: Any, arguments: Mapping[str, Any], **asked: Any) -> tuple[Any, int]:
        """What the caller gets, and how many images there are."""
        with with_models_alone(pipe):
            output, images = run(pipe, arguments, **asked)
        return output, _count(images)

    def _has_new_weights(self, request: GenerationRequest) -> bool:
        return Channel.ADAPTER_WEIGHTS not in request.used and has_adapter_weights(self._pipe)

    def _still_fits(self, prefix: Prefix) -> Mapping[str, Fingerprint]:
        """The fingerprints of the text encoders, which must be those for which the prefix was found a moment ago."""
        found = self.fingerprints()
        if any(found.get(slot) != made_for for slot, made_for in prefix.metadata.fingerprints.items()):
            likeness = self.likeness(prefix)
            if likeness.keys() != prefix.vectors.keys() or any(
                each.tier not in (Tier.EXACT, Tier.COMPATIBLE) for each in likeness.values()
            ):
                raise PrefixNotApplied("the pipe got another text encoder after the prefix had been found for it")
        return found

    def get_setting(self, name: str) -> Any:
        """A setting of the pipe, or a method that places or speeds up its models.

        Raises:
            AttributeError: The pipe has none of this name, or it could generate or encode unguarded.
        """
        if name not in _READABLE | _METHODS:
            reachable = ", ".join(sorted(_READABLE | _METHODS))
            raise AttributeError(f"'{name}' is not reachable through the guard; these are: {reachable}", name=name)
        return getattr(self._pipe, name)

    def set_setting(self, name: str, value: Any) -> None:
        """Change a setting of the pipe.

        Raises:
            AttributeError: It may not be changed through the guard.
        """
        if name not in _WRITABLE:
            raise AttributeError(
                f"'{name}' cannot be set through the guard; these can: {', '.join(sorted(_WRITABLE))}",
                name=name,
            )
        setattr(self._pipe, name, value)

    def _knows(self, name: str) -> bool:
        # What a pipeline takes beyond its signature it reads from **kwargs, which is where old names live on.
        return is_known(name) and (name in self._signature.parameters or name in _OLD_NAMES)


def _check_plain_rows(received: Mapping[str, Received], tokenizers: Sequence[tuple[Encoder | None, Any]]) -> None:
    """Make sure that no part of a prompt ran bare: every row without the prefix is of a text that is no prompt."""
    for slot, seen in received.items():
        known = [tokenizer for encoder, tokenizer in tokenizers if encoder is not None and encoder.slot == slot]
        bare = [row for row in seen.plain_rows if not any(tokenizer.may_be_plain(row) for tokenizer in known)]
        if any(is_of_prompt(i) for row in bare for i in row):
            raise PrefixNotApplied(
                f"{slot} received a part of a prompt without the prefix; what splits a long prompt has to cut the "
                "tokens of the whole text into chunks of the text encoder's window"
            )
        if bare:
            raise PrefixNotApplied(
                f"{slot} received tokens that no tokenizer of this call made, without the prefix; helpers such as "
                "compel have to be made in encode_prompt, of self.tokenizer and self.text_encoder, not before the call"
            )


def _copied(value: Any) -> Any:
    """Pipelines may write into the lists they are given."""
    return list(value) if isinstance(value, list) else value


def _count(images: Any) -> int:
    """How many there are, or layers of them: in lists, or one array in front of the other."""
    lie_together = isinstance(images, list | tuple) or getattr(images, "ndim", 0) > 3
    return sum(map(_count, images)) if lie_together else 1
