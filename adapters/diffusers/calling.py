"""How pipelines of diffusers are called, and what they give back, whichever kind they are of.

Others take arguments in an order, and give images first of all. Modular ones take them by name, and give back the
state, in which everything lies that was taken or made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .modular import inputs_of, is_modular

__all__ = ["run", "signature_of"]


def signature_of(pipe: Any) -> inspect.Signature:
    """How a pipe is called, the pipe itself being the first argument.

    Args:
        pipe: A pipeline of diffusers.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> signature_of(tiny_pipe()).parameters["num_inference_steps"].default
        50
    """
    if not is_modular(type(pipe)):
        return inspect.signature(type(pipe).__call__)
    by_name = {"output": None, **inputs_of(pipe.blocks)}
    prompt = by_name.pop("prompt")  # without a name, the guard takes it as every other pipe does
    return inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            inspect.Parameter("prompt", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=prompt),
            *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=own) for name, own in by_name.items()),
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
    )


def run(pipe: Any, arguments: Mapping[str, Any], as_asked: Mapping[str, Any] = MappingProxyType({})) -> tuple[Any, Any]:
    """Call a pipe.

    Args:
        pipe: The pipeline, or a view of it.
        arguments: Of the call.
        as_asked: Argument → what the caller asked for, where the arguments say something else.

    Returns:
        What the caller gets; and the images alone.
    """
    if not is_modular(type(pipe)):
        found = pipe(**arguments)
        is_bare = isinstance(found, list) or hasattr(found, "ndim")
        return found, found if is_bare else found[0]
    output = arguments.get("output")
    state = pipe(**{name: value for name, value in arguments.items() if name != "output"})
    for name, value in as_asked.items():
        state.set(name, value)
    return state if output is None else state.get(output), state.get("images")
