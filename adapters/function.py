"""Any function `prompt -> images`.

    def draw(prompt): ...

    guard = Guard(draw, policy="mine.yaml")
    guard("a photo of a man")

The guard cannot see what the function does with the text, so no prefix protects the prompt. What happens in its
place is the policy's `without_prefix`: block, which is the default, or rewrite names to neutral descriptions.

It has to draw before it returns, or the record would speak of pictures that nobody has seen. For an `async` function
that is `lambda prompt: asyncio.run(draw(prompt))`, for one that yields pictures `lambda prompt: list(draw(prompt))`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from io import IOBase
from typing import Any

from apl_guard.adapters.remote.adapter import TextOnlyAdapter
from apl_guard.backend import Generation
from apl_guard.errors import GuardUnavailable, InvalidInput
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, argument_name, texts

__all__ = ["FunctionAdapter"]

_LATER = (
    "draws after it has returned; expected a function that returns finished images, such as "
    "lambda prompt: asyncio.run(draw(prompt)), or lambda prompt: list(draw(prompt))"
)


class FunctionAdapter(TextOnlyAdapter):
    """Makes a function of one prompt, or of a list of prompts, fulfil `apl_guard.backend.Backend`.

    Args:
        function: The function.

    Raises:
        InvalidInput: It is `async`, or yields its pictures.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if any(
            kind(function)
            for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        ):
            raise InvalidInput(f"found one that {_LATER}", where="pipe")
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
        unknown = tuple(argument_name(name) for name in kwargs.keys() - {"prompt"})
        arguments = {"prompt": found[0] if isinstance(prompt, str) else list(found)}
        text = {Channel.PROMPT: found}
        return GenerationRequest(self.name, text, frozenset(text), unknown, arguments, carries_prefix=False)

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Call the function with the texts of the request.

        Raises:
            PrefixNotApplied: There is a prefix.
            GuardUnavailable: What the function returned draws only when somebody asks it for pictures.
            Exception: Whatever the function raises, unchanged.
        """
        if prefix is not None:
            self.check_prefix(prefix)
        prompts = list(request.prompts)
        output = self._function(prompts[0] if isinstance(request.arguments["prompt"], str) else prompts)
        if (later := _later_in(output)) is not None:
            raise GuardUnavailable(f"found a {type(later).__name__} from {self.name}, which {_LATER}")
        if output is None:
            return Generation(output, 0)
        return Generation(output, len(output) if isinstance(output, list | tuple) else 1)


def _later_in(output: Any) -> Any:
    """What draws only when somebody asks it for pictures: the output, or what it holds for one of several prompts."""
    if isinstance(output, list | tuple):
        later = [each for each in output if isinstance(each, Awaitable | Generator | AsyncIterator | Future)]
    else:  # a file can be read line by line, but is there
        is_later = isinstance(output, Awaitable | Iterator | AsyncIterator | Future) and not isinstance(output, IOBase)
        later = [output] if is_later else []
    for each in filter(inspect.iscoroutine, later):
        each.close()
    return later[0] if later else None
