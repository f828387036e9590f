"""One call of a pipe, read before anything runs: what enters the generation, and through which channel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from apl_guard.errors import GuardUnavailable, InvalidInput, RequestTooLarge
from apl_guard.request.ids import new_id
from apl_guard.request.reading import Reading

__all__ = [
    "MAX_CHARACTERS",
    "MAX_TEXTS",
    "PROMPT_CHANNELS",
    "TEXT_CHANNELS",
    "Channel",
    "GenerationRequest",
    "argument_name",
    "texts",
]

MAX_CHARACTERS = 1_000_000
"""Of all texts of a request together. More is not even decided about: digests and detectors read every letter."""
MAX_TEXTS = 10_000
"""Of all channels of a request together."""


class Channel(StrEnum):
    """One way in which content enters a generation."""

    PROMPT = "prompt"
    PROMPT_2 = "prompt_2"
    """A second prompt, for a second text encoder."""
    PROMPT_3 = "prompt_3"
    PROMPT_4 = "prompt_4"
    NEGATIVE_PROMPT = "negative_prompt"
    NEGATIVE_PROMPT_2 = "negative_prompt_2"
    NEGATIVE_PROMPT_3 = "negative_prompt_3"
    NEGATIVE_PROMPT_4 = "negative_prompt_4"
    INSTRUCTION = "instruction"
    """Text that the pipeline puts before the prompt, so before the prefix too."""
    GUIDANCE = "guidance"
    """A guidance scale that would draw what the negative prompt says."""
    PROMPT_EMBEDS = "prompt_embeds"
    """Prompt embeds that the caller computed: the text encoder, and so the prefix, is left out."""
    NEGATIVE_PROMPT_EMBEDS = "negative_prompt_embeds"
    IMAGE = "image"
    """Pictures that generation starts from or is steered by; who is in them stays in them."""
    CONTROL_IMAGE = "control_image"
    """A picture that gives outlines, poses or depths."""
    IMAGE_EMBEDS = "image_embeds"
    """An encoded picture."""
    IP_ADAPTER = "ip_adapter"
    """A picture, or its embeds, as a second prompt."""
    LATENTS = "latents"
    """Initial latents; those of an inverted photograph bring its content along."""
    CALLBACK = "callback"
    """The caller's code between denoising steps, which can exchange prompt embeds and latents."""
    ATTENTION = "attention"
    """Arguments of the attention layers, and early layers of a text encoder in place of its last."""
    ADAPTER_WEIGHTS = "adapter_weights"
    """LoRA and similar weights in the pipe, which can hold a person."""
    TEXTUAL_INVERSION = "textual_inversion"
    """Learned words of other people, which can hold a person."""
    PROMPT_SYNTAX = "prompt_syntax"
    """What a prompt holds besides plain text and that could weaken the prefix: the syntax of a server, or special
    tokens that would end the user's turn of a chat template."""
    EXTENSION = "extension"
    """Scripts, settings and parts of a server that the guard does not know."""


PROMPT_CHANNELS = (Channel.PROMPT, Channel.PROMPT_2, Channel.PROMPT_3, Channel.PROMPT_4)
"""The channels that a prefix protects."""
TEXT_CHANNELS = (
    *PROMPT_CHANNELS,
    Channel.NEGATIVE_PROMPT,
    Channel.NEGATIVE_PROMPT_2,
    Channel.NEGATIVE_PROMPT_3,
    Channel.NEGATIVE_PROMPT_4,
)
"""The channels whose content is text, which can be looked at and rewritten."""


def _no_readings(text: str) -> Sequence[Reading]:
    return ()


@dataclass(frozen=True)
class GenerationRequest:
    """A snapshot of one call. What the caller does to its lists afterwards changes nothing here.

    The representation shows no content, so that a request may appear in a log or a traceback.

    Raises:
        RequestTooLarge: It holds more than `MAX_CHARACTERS` or `MAX_TEXTS`.
    """

    backend: str
    """The adapter and the class of the pipe, such as `diffusers:StableDiffusionPipeline`."""
    text: Mapping[Channel, tuple[str, ...]] = field(repr=False)
    """Text channel → its texts. An adapter generates from these, whatever else `arguments` hold."""
    used: frozenset[Channel]
    """Every channel that holds content, text channels too."""
    unknown: tuple[str, ...] = ()
    """Arguments that the adapter does not know."""
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The arguments of the call, for the adapter."""
    slots: tuple[str, ...] = ()
    """The text encoders that the prompts go to, where the adapter can see them."""
    carries_prefix: bool = True
    """Whether a prefix can reach the text encoder. Into a hosted service no embedding can travel."""
    readings: Callable[[str], Sequence[Reading]] = field(default=_no_readings, repr=False, compare=False)
    """What else the backend makes of a text before it draws it."""
    id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        _check_size((text for found in self.text.values() for text in found), where="request")
        object.__setattr__(self, "text", MappingProxyType(dict(self.text)))
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, in order."""
        return self.text.get(Channel.PROMPT, ())

    @property
    def batch(self) -> int:
        """How many prompts each text encoder gets."""
        return max((len(self.text.get(channel, ())) for channel in PROMPT_CHANNELS), default=0)

    def saying(self, text: Mapping[Channel, tuple[str, ...]]) -> GenerationRequest:
        """The same request with other texts, in `text` and in the arguments of the same names.

        Args:
            text: Text channel → its texts, as many as before. Channels that are not named keep theirs.

        Raises:
            GuardUnavailable: An argument does not hold the texts that were read from it.

        Example:
            >>> prompt = Channel.PROMPT
            >>> asked = GenerationRequest("demo:Pipe", {prompt: ("a",)}, frozenset({prompt}), (), {"prompt": "a"})
            >>> dict(asked.saying({prompt: ("b",)}).arguments)
            {'prompt': 'b'}
        """
        arguments = dict(self.arguments)
        for channel, new in text.items():
            old = self.text.get(channel, ())
            held = arguments.get(channel.value)
            if len(new) != len(old) or held not in (None, list(old), *old[: len(old) == 1]):
                raise GuardUnavailable(f"'{channel.value}' does not hold the {len(new)} texts that were read from it")
            if held is not None:
                arguments[channel.value] = new[0] if isinstance(held, str) else list(new)
        return replace(self, text={**self.text, **text}, arguments=arguments)


def argument_name(name: str) -> str:
    """The name of an argument that nobody knows, as it may stand in a record.

    Example:
        >>> argument_name("hook\x1b[2J")
        'hook??2J'
    """
    return re.sub(r"\W", "?", name)[:60]


def texts(value: object, where: str) -> tuple[str, ...]:
    """Take a snapshot of a prompt or a list of prompts.

    A subclass of `str` could say one thing to the guard and another to the tokenizer, so each text becomes
    a plain string once.

    Raises:
        InvalidInput: It is no text and no list of texts, or the list is empty.
        RequestTooLarge: It is more than a whole request may hold.

    Example:
        >>> texts(["a cat", "a dog"], where="prompt")
        ('a cat', 'a dog')
        >>> texts([], where="prompt")
        Traceback (most recent call last):
        apl_guard.errors.InvalidInput: prompt: found an empty list; expected at least one text
    """
    if isinstance(value, str):
        return _check_size((str.__str__(value),), where)
    if not isinstance(value, list):
        found = type(value).__name__
        raise InvalidInput(f"found {found}; expected a text or a list of texts", where=where)
    copied = list(value)
    for position, text in enumerate(copied):
        if not isinstance(text, str):
            found = type(text).__name__
            raise InvalidInput(f"found {found}; expected a text", where=f"{where}[{position}]")
    if not copied:
        raise InvalidInput("found an empty list; expected at least one text", where=where)
    return _check_size((str.__str__(text) for text in copied), where)


def _check_size(found: Iterable[str], where: str) -> tuple[str, ...]:
    """The same texts, if a request may hold so many.

    Raises:
        RequestTooLarge: It may not.
    """
    counted = tuple(found)
    characters = sum(map(len, counted))
    if characters > MAX_CHARACTERS or len(counted) > MAX_TEXTS:
        raise RequestTooLarge(
            f"found {characters} characters in {len(counted)} texts; a request may hold {MAX_CHARACTERS} in "
            f"{MAX_TEXTS}, of all channels together; send fewer or shorter prompts in one call",
            where=where,
        )
    return counted
