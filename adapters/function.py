"""Any function `prompt -> images`.

    def draw(prompt): ...

    guard = Guard(draw, policy="mine.yaml")
    guard("a photo of a man")

The guard cannot see what the function does with the text, so no prefix protects the prompt. What happens in its
place is the policy's `without_prefix`: block, which is the default, or rewrite names to neutral descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from apl_guard.backend import Generation
from apl_guard.errors import PrefixNotApplied
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, texts

from .remote_adapter import RemoteAdapter

__all__ = ["FunctionAdapter"]


class FunctionAdapter(RemoteAdapter):
    """Makes a function of one prompt, or of a list of prompts, fulfil `apl_guard.backend.Backend`."""

    carries_prefix = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        named = getattr(function, "func", function)  # a partial function has no name of its own
        self.name = f"function:{getattr(named, '__qualname__', type(named).__qualname__)}"

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Take a snapshot of the prompt. Every other argument is unknown.

        Raises:
            InvalidInput: The prompt is no text and no list of texts.
            TypeError: There is no prompt, or more than one positional argument.
        """
        if len(args) > 1 or bool(args) == ("prompt" in kwargs):
            raise TypeError("expected one argument, the prompt")
        prompt = args[0] if args else kwargs["prompt"]
        found = texts(prompt, where="prompt")
        unknown = tuple(re.sub(r"\W", "?", name)[:60] for name in kwargs.keys() - {"prompt"})
        arguments = {"prompt": found[0] if isinstance(prompt, str) else list(found)}
        text = {Channel.PROMPT: found}
        return GenerationRequest(self.name, text, frozenset(text), unknown, arguments, carries_prefix=False)

    def check_prefix(self, prefix: Prefix) -> None:
        """No prefix can be put in front.

        Raises:
            PrefixNotApplied: Always.
        """
        raise PrefixNotApplied(f"no prefix can reach {self.name}: it takes text alone")

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Call the function with the texts of the request.

        Raises:
            PrefixNotApplied: There is a prefix.
            Exception: Whatever the function raises, unchanged.
        """
        if prefix is not None:
            self.check_prefix(prefix)
        prompts = list(request.prompts)
        output = self._function(prompts[0] if isinstance(request.arguments["prompt"], str) else prompts)
        return Generation(output, len(output) if isinstance(output, list | tuple) else 1)
