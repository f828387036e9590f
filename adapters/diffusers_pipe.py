"""Pipelines of diffusers.

Each argument of the wrapped call stands in one table below: it carries content through a channel, or it is
harmless. A pipeline class with an argument that is in neither is refused as a whole, so a new release of
diffusers with a new channel fails loudly instead of leaking.

A guarded call runs the pipeline's own code on a *view* of the pipe: an object of the same class that shares
every model with it and owns a scheduler and a tokenizer of its own. So calls in several threads do not
disturb each other, and the pipe is the same after the call as before.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from apl_guard.backend import Generation, Receipt
from apl_guard.errors import GuardUnavailable, InvalidInput
from apl_guard.fingerprint import Fingerprint, fingerprint
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, texts
from apl_guard.traits import Likeness, compare
from apl_guard.weights import largest_norm

from .diffusers_load import load_pipe
from .inject import injected
from .prefix_tokenizer import PrefixTokenizer, new_mark

__all__ = ["DiffusersAdapter", "load_pipe"]

_SLOT = "text_encoder"

_TEXT_CHANNELS = {"prompt": Channel.PROMPT, "negative_prompt": Channel.NEGATIVE_PROMPT}
_CHANNELS = _TEXT_CHANNELS | {
    "prompt_embeds": Channel.PROMPT_EMBEDS,
    "negative_prompt_embeds": Channel.NEGATIVE_PROMPT_EMBEDS,
    "ip_adapter_image": Channel.IP_ADAPTER,
    "ip_adapter_image_embeds": Channel.IP_ADAPTER,
    "latents": Channel.LATENTS,
    "callback": Channel.CALLBACK,
    "callback_on_step_end": Channel.CALLBACK,
    "cross_attention_kwargs": Channel.ATTENTION,
}
# Numbers, sizes and forms of output: they cannot name anybody.
_HARMLESS = {
    "callback_on_step_end_tensor_inputs",
    "callback_steps",
    "clip_skip",
    "eta",
    "generator",
    "guidance_rescale",
    "guidance_scale",
    "height",
    "num_images_per_prompt",
    "num_inference_steps",
    "output_type",
    "return_dict",
    "sigmas",
    "timesteps",
    "width",
}

_READABLE = {"config", "device", "dtype", "name_or_path", "scheduler", "vae_scale_factor"}
_WRITABLE = {"scheduler"}
# Methods that place or speed up the models. None of them encodes or generates.
_METHODS = {
    "disable_attention_slicing",
    "disable_vae_slicing",
    "disable_vae_tiling",
    "disable_xformers_memory_efficient_attention",
    "enable_attention_slicing",
    "enable_model_cpu_offload",
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
        InvalidInput: The pipeline's class has arguments or text encoders that this adapter does not know.
    """

    carries_prefix = True

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._call: Callable[..., Any] = type(pipe).__call__
        self._signature = inspect.signature(self._call)
        self.name = f"diffusers:{type(pipe).__name__}"
        named = set(list(self._signature.parameters)[1:]) - {"kwargs"}
        unknown = sorted(named - _CHANNELS.keys() - _HARMLESS)
        if unknown or "prompt" not in named:
            takes = f"takes {', '.join(unknown)}" if unknown else "takes no prompt"
            raise InvalidInput(
                f"{type(pipe).__name__} {takes}, which this version of apl-guard does not cover", where="pipe"
            )
        encoders = [name for name in pipe.components if "text_encoder" in name]
        if encoders != [_SLOT]:
            raise InvalidInput(
                f"{type(pipe).__name__} has the text encoders {encoders}; this version covers ['{_SLOT}']",
                where="pipe",
            )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the arguments of a call into channels and take a snapshot of them.

        Raises:
            InvalidInput: A prompt is no text.
            TypeError: The arguments do not fit the pipe's signature.
        """
        bound = self._signature.bind(self._pipe, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        arguments |= arguments.pop("kwargs", {})
        text: dict[Channel, tuple[str, ...]] = {}
        used: set[Channel] = set()
        for name, value in arguments.items():
            channel = _CHANNELS.get(name)
            if isinstance(value, list):
                arguments[name] = list(value)
            if channel is None or value is None or value == {}:
                continue
            used.add(channel)
            if name in _TEXT_CHANNELS:
                text[channel] = texts(arguments[name], where=name)
                arguments[name] = text[channel][0] if isinstance(value, str) else list(text[channel])
        if self._has_adapter_weights():
            used.add(Channel.ADAPTER_WEIGHTS)
        # Names may come from a request that a service passes on, so they are made safe for messages.
        unknown = tuple(re.sub(r"\W", "?", name)[:60] for name in arguments.keys() - _CHANNELS.keys() - _HARMLESS)
        return GenerationRequest(self.name, text, frozenset(used), unknown, arguments)

    def fingerprints(self) -> Mapping[str, Fingerprint]:
        """Slot → fingerprint of the text encoder that is in the pipe now.

        Raises:
            GuardUnavailable: The pipe has no text encoder.
        """
        text_encoder = getattr(self._pipe, _SLOT, None)
        if text_encoder is None or self._pipe.tokenizer is None:
            raise GuardUnavailable("the pipe has no text encoder or no tokenizer; a prefix needs both")
        return {_SLOT: fingerprint(text_encoder, self._pipe.tokenizer)}

    def likeness(self, prefix: Prefix) -> Mapping[str, Likeness]:
        """Slot → how close the text encoder in it is to the one that this prefix was trained with."""
        made_for, traits = prefix.metadata.fingerprints, prefix.metadata.traits
        text_encoder, tokenizer = self._pipe.text_encoder, self._pipe.tokenizer
        return {_SLOT: compare(made_for[_SLOT], traits.get(_SLOT), text_encoder, tokenizer)}

    def check_prefix(self, prefix: Prefix) -> None:
        """Whether the vectors are of the size of token embeddings. Each call checks what the encoder received.

        Raises:
            PrefixInvalid: They are far larger.
        """
        prefix.check_norms(_SLOT, largest_norm(self._pipe.text_encoder))

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate, with the prefix in front of every prompt of this call only.

        Raises:
            PrefixNotApplied: The pipeline treats its prompts in a way that the guard does not know.
            Exception: Whatever the pipe raises, unchanged.
        """
        view = self._view()
        if prefix is None:
            output = self._call(view, **request.arguments)
            return Generation(output, _count_images(output))

        vectors = prefix.vectors[_SLOT]
        mark = new_mark()
        tokenizer = PrefixTokenizer(self._pipe.tokenizer, mark, len(vectors))
        view.__dict__["tokenizer"] = tokenizer
        arguments = dict(request.arguments)
        marked = [f"{mark} {prompt}" for prompt in request.prompts]
        arguments["prompt"] = marked[0] if isinstance(arguments["prompt"], str) else marked
        with injected(view.text_encoder, vectors) as received:
            output = self._call(view, **arguments)
        receipt = Receipt({_SLOT: received.rows}, {_SLOT: tokenizer.tokens_cut})
        return Generation(output, _count_images(output), receipt)

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

    def _view(self) -> Any:
        view = copy.copy(self._pipe)
        # Not by assignment, which would also write to the configuration that pipe and view share.
        view.__dict__["scheduler"] = copy.deepcopy(self._pipe.scheduler)
        # Offloading keeps its hooks on the real pipe.
        view.__dict__["maybe_free_model_hooks"] = self._pipe.maybe_free_model_hooks
        return view

    def _has_adapter_weights(self) -> bool:
        models = [model for model in self._pipe.components.values() if isinstance(model, nn.Module)]
        return any(
            getattr(model, "peft_config", None) or any("lora_" in name for name, _ in model.named_parameters())
            for model in models
        )


def _count_images(output: Any) -> int:
    return len(output[0])
