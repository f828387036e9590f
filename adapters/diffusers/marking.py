"""Which texts of a call are prompts, and the mark that goes in front of each on its way to the tokenizer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from apl_guard.adapters.inject.origin import Source
from apl_guard.adapters.prompts.forms import cleaned_forms
from apl_guard.request import PROMPT_CHANNELS, Channel, GenerationRequest

from .arguments import TEXT

__all__ = ["check_unmarked", "marked", "part_of_prompts"]

_WORD = re.compile(r"\w+")


def part_of_prompts(request: GenerationRequest) -> Callable[[str], bool]:
    """Whether a text is a part of a prompt, or says nothing but words of prompts, in any form that these may take."""

    @functools.cache
    def said() -> tuple[tuple[str, ...], set[str]]:
        prompts = (text for channel in PROMPT_CHANNELS for text in request.text.get(channel, ()))
        forms = tuple({form.lower() for text in prompts for form in cleaned_forms(text)})
        return forms, {word for form in forms for word in _WORD.findall(form)}

    def is_part(text: str) -> bool:
        text = text.strip().lower()
        if not text:
            return False
        forms, words = said()
        own = set(_WORD.findall(text))
        return any(text in form for form in forms) or bool(own and own <= words)

    return is_part


class _Unmarked:
    """A checker of texts that is given them without the mark, because it shall judge what the user wrote."""

    def __init__(self, checker: Any, mark: str) -> None:
        self._checker, self._mark = checker, mark

    def check_text_safety(self, text: str) -> Any:
        return self._checker.check_text_safety(text.removeprefix(f"{self._mark} "))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checker, name)


def check_unmarked(view: Any, mark: str) -> None:
    """Have the view of a pipe that checks its prompts, as that of Cosmos does, check them without the mark."""
    checker = getattr(view, "safety_checker", None)
    if hasattr(checker, "check_text_safety"):
        view.__dict__["safety_checker"] = _Unmarked(checker, mark)


def marked(request: GenerationRequest, mark: str, source: Source) -> dict[str, str | list[str]]:
    """The text arguments of the call, the prompts with the mark in front, and those others that say what a prompt says
    with a mark of their own."""

    def plain(text: str) -> str:
        if not source.is_prompt(text):
            return text
        start = len(text) - len(text.lstrip())  # pipelines that strip a text shall go on doing so
        return f"{text[:start]}{source.plain_mark} {text[start:]}"

    arguments: dict[str, str | list[str]] = {}
    for name, channel in TEXT.items():
        found = request.text.get(channel)
        if found is None:
            continue
        is_list = isinstance(request.arguments.get(name), list)
        # An empty second prompt means "the same as the first", and must go on meaning that; a list of them does not.
        is_marked = channel in PROMPT_CHANNELS and (channel == Channel.PROMPT or is_list or any(found))
        new = [f"{mark} {text}" if is_marked else plain(text) for text in found]
        arguments[name] = new if is_list else new[0]
    return arguments
