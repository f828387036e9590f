"""The seam between the guard and a foreign system, and where the adapter for a pipe is found.

An adapter fulfils `Backend`. The guard asks for it by the package or module that the class of the pipe comes
from, so neither the guard nor `import apl_guard` loads a foreign system that is not there.
Third parties add theirs under the entry-point group `apl_guard.adapters`, named as that package or module is, or give
the guard the adapter itself.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.errors import InvalidInput, Portable
from apl_guard.request import GenerationRequest

if TYPE_CHECKING:
    from apl_guard.encoder.traits import Likeness
    from apl_guard.prefix import Prefix

__all__ = ["Backend", "BackendFailed", "DrawsPlain", "Generation", "Receipt", "adapter_for"]

ENTRY_POINT_GROUP = "apl_guard.adapters"
_BUILT_IN = {
    "diffusers": "apl_guard.adapters.diffusers.adapter:DiffusersAdapter",
    "apl_guard.adapters.a1111": "apl_guard.adapters.a1111:A1111Adapter",
    "apl_guard.adapters.comfyui": "apl_guard.adapters.comfyui:ComfyUIAdapter",
    "apl_guard.adapters.openai_images": "apl_guard.adapters.openai_images:OpenAIImagesAdapter",
}
_FUNCTION = "apl_guard.adapters.function:FunctionAdapter"


class BackendFailed(Portable):
    """The foreign system failed, also where an adapter has to ask it something to read a request."""


@dataclass(frozen=True)
class Receipt:
    """What the text encoders really received."""

    prefix_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Slot → for each prompt, how many prefix vectors stood in front of it."""
    tokens_cut: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Slot → for each prompt, how many of its tokens did not fit."""
    change: Mapping[str, tuple[float, ...]] | None = None
    """Slot → for each prompt, how far the prefix moved what the text encoder gave, relative to its size. None
    where that is out of reach."""


@dataclass(frozen=True)
class Generation:
    """What a backend made of a request."""

    output: Any
    """What the pipe returned, in the pipe's own type."""
    images: int
    receipt: Receipt = Receipt()
    seconds: float | None = None
    """How long the pipe itself took. The rest is the guard's own work; None where the adapter does not say."""


class Backend(Protocol):
    """What the guard asks of an adapter. An adapter is made with the pipe as its only argument."""

    name: str
    """The adapter and what it wraps, such as `diffusers:StableDiffusionPipeline`."""
    carries_prefix: bool
    """Whether a prefix can reach the text encoder. Where it cannot, the policy decides what happens instead."""

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the arguments of a call into channels and take a snapshot of them.

        Raises:
            InvalidInput: A prompt is no text.
            TypeError: The arguments do not fit the pipe's signature.
            BackendFailed: The foreign system had to be asked something, and failed.
        """

    def fingerprints(self) -> Mapping[str, Fingerprint] | None:
        """Slot → fingerprint of the text encoder that is in the pipe now.

        None where its weights are out of reach, so that the prefix has to be named by the platform.
        """

    def likeness(self, prefix: Prefix) -> Mapping[str, Likeness]:
        """Slot → how close the text encoder in it is to the one that this prefix was trained with.

        Asked only where `fingerprints` gave some.
        """

    def check_prefix(self, prefix: Prefix) -> None:
        """Make sure that this prefix can be put in front, before the first call with it.

        Raises:
            PrefixInvalid: Its vectors are far larger than the token embeddings of the text encoder.
            PrefixNotApplied: It cannot.
        """

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate, with the prefix in front of every prompt of this call only.

        Args:
            request: What `read` returned.
            prefix: The prefix, or None to generate as the bare pipe does.

        The guard checks the receipt; what it lacks counts as not applied.

        Raises:
            PrefixNotApplied: The prefix cannot be put in front.
            Exception: Whatever the pipe raises, unchanged.
        """

    def get_setting(self, name: str) -> Any:
        """A setting of the pipe.

        Raises:
            AttributeError: The pipe has none of this name, or it could generate or encode unguarded.
        """

    def set_setting(self, name: str, value: Any) -> None:
        """Change a setting of the pipe.

        Raises:
            AttributeError: It may not be changed through the guard.
        """


@runtime_checkable
class DrawsPlain(Protocol):
    """What an adapter may offer besides: to draw a request once more, to compare with."""

    def draw_plain(self, request: GenerationRequest) -> Generation:
        """Draw without the prefix, from random numbers of its own. What the caller gave is not used up.

        Args:
            request: What `read` returned, or the same saying something else.

        Raises:
            GuardUnavailable: What draws is no longer what drew the request.
            Exception: Whatever the pipe raises, unchanged.
        """


_METHODS = tuple(name for name, member in vars(Backend).items() if inspect.isfunction(member) and name[0] != "_")


def adapter_for(pipe: Any) -> Backend:
    """Make the adapter for a pipe. What is an adapter already is its own.

    Raises:
        InvalidInput: There is none for pipes of this class.
    """
    if _is_adapter(pipe):
        own: Backend = pipe
        return own
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    known = {**found, **_BUILT_IN}  # a third party cannot take the place of a built-in adapter
    is_function = inspect.isroutine(pipe) or isinstance(pipe, functools.partial)
    targets = [_FUNCTION] if is_function else [_longest(known, cls.__module__) for cls in type(pipe).__mro__]
    for target in filter(None, targets):
        module, _, name = target.partition(":")
        adapter: Backend = getattr(importlib.import_module(module), name)(pipe)
        return adapter
    found_class = f"{type(pipe).__module__}.{type(pipe).__qualname__}"
    raise InvalidInput(
        f"no adapter for {found_class}; expected a pipe itself, as StableDiffusionPipeline.from_pretrained(…) returns "
        f"one. There are adapters for: {', '.join(known)}, and for functions of a prompt; one of your own has the "
        f"methods {', '.join(_METHODS)}",
        where="pipe",
    )


def _is_adapter(pipe: Any) -> bool:
    """Whether its class has what the guard asks for. Clients that answer to any name have it only in themselves."""
    return all(callable(getattr(type(pipe), name, None)) for name in _METHODS)


def _longest(known: Mapping[str, str], module: str) -> str | None:
    """The entry for a module, or else for the nearest package around it."""
    while module and module not in known:
        module = module.rpartition(".")[0]
    return known.get(module)
