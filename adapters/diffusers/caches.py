"""Denoisers with caches, such as MagCache. What a cache remembers of one step, to leave out work in the next, diffusers
keeps in the model: of one call at a time, and of a call that failed until another one has ended.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from apl_guard.encoder.anatomy import modules_of
from apl_guard.forks import mend_after_fork

__all__ = ["with_own_caches"]


@contextmanager
def with_own_caches(pipe: DiffusionPipeline) -> Iterator[None]:
    """While one call draws: its caches remember nothing of other calls, for which others wait that need the same ones.

    Where no model of the pipe has a cache, nobody waits.

    Args:
        pipe: The pipe.
    """
    found = [_registries_in(model) for model in pipe.components.values() if isinstance(model, nn.Module)]
    with ExitStack() as stack:
        # In the same order for everybody, or two who need several would wait for each other.
        for registries in sorted(filter(None, found), key=lambda registries: id(registries[0])):
            stack.enter_context(_locks.of(registries[0]))
            for registry in registries:
                registry.reset_stateful_hooks(recurse=False)
        yield


def _registries_in(model: nn.Module) -> list[Any]:
    """Where diffusers keeps the hooks of a model's parts, if any of these remembers something."""
    found = [registry for part in modules_of(model) if (registry := vars(part).get("_diffusers_hook")) is not None]
    return [registry for registry in found if any(hook._is_stateful for hook in registry.hooks.values())]


class _Locks:
    """A lock for each model with caches, known by the first of its registries, which a compiled model keeps."""

    def __init__(self) -> None:
        self.after_fork()
        mend_after_fork(self)

    def after_fork(self) -> None:
        """In the child of a fork. Threads of the parent may have held them."""
        self._known: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()

    def of(self, registry: Any) -> threading.RLock:
        # For a callback that draws with the same model, it can be taken again.
        return self._known.setdefault(registry, threading.RLock())


_locks = _Locks()
