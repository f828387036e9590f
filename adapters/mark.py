"""The mark that stands in front of each prompt on its way to the tokenizer, and which texts are prompts."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from apl_guard.request import PROMPT_CHANNELS, Channel, GenerationRequest

from .diffusers_arguments import TEXT

__all__ = ["marked", "new_mark", "part_of_prompts"]


def new_mark() -> str:
    """Make a mark: lower-case letters only, so that cleaning, templates and lower-casing leave it alone.

    Example:
        >>> new_mark().isalpha(), new_mark() == new_mark()
        (True, False)
    """
    return "zqx" + "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(24)) + "xqz"


def part_of_prompts(request: GenerationRequest) -> Callable[[str], bool]:
    """Whether a text is a part of a prompt, and not one of a negative prompt too."""
    prompts: list[str] = []
    others: list[str] = []
    for channel, found in request.text.items():
        (prompts if channel in PROMPT_CHANNELS else others).extend(text.lower() for text in found)

    def is_part(text: str) -> bool:
        text = text.strip().lower()
        return bool(text) and any(text in p for p in prompts) and not any(text in o for o in others)

    return is_part


def marked(request: GenerationRequest, mark: str) -> dict[str, str | list[str]]:
    """The text arguments of the call, the prompts with the mark in front."""
    arguments: dict[str, str | list[str]] = {}
    for name, channel in TEXT.items():
        found = request.text.get(channel)
        if found is None:
            continue
        is_list = isinstance(request.arguments.get(name), list)
        # An empty second prompt means "the same as the first", and must go on meaning that; a list of them does not.
        is_marked = channel in PROMPT_CHANNELS and (channel == Channel.PROMPT or is_list or any(found))
        new = [f"{mark} {text}" for text in found] if is_marked else list(found)
        arguments[name] = new if is_list else new[0]
    return arguments
