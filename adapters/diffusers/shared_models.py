"""What diffusers changes in the models themselves while one call draws, although others draw with them too.

Caches, such as MagCache, remember one step, to leave out work in the next: of one call at a time, and of a call that
failed until another one has ended. Perturbed-attention guidance exchanges attention processors, and puts the former
ones back if the call does not fail.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import nn

from apl_guard.encoder.anatomy import modules_of
from apl_guard.forks import mend_after_fork

__all__ = ["with_models_alone"]


@contextmanager
def with_models_alone(pipe: DiffusionPipeline) -> Iterator[None]:
    """While one call draws: nothing of other calls is in its models, and nothing of it is left there if it fails.

    Calls that would disturb each other wait for each other: those with caches in one model, and those with guidance by
    perturbed attention. No other call waits.

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
        if isinstance(pipe, PAGMixin):
            stack.enter_context(_with_own_processors(pipe.unet if hasattr(pipe, "unet") else pipe.transformer))
        yield


@contextmanager
def _with_own_processors(denoiser: Any) -> Iterator[None]:
    with _locks.of(denoiser):
        before = denoiser.attn_processors
        try:
            yield
        except BaseException:
            denoiser.set_attn_processor(before)
            raise


def _registries_in(model: nn.Module) -> list[Any]:
    """Where diffusers keeps the hooks of a model's parts, if any of these remembers something."""
    found = [registry for part in modules_of(model) if (registry := vars(part).get("_diffusers_hook")) is not None]
    return [registry for registry in found if any(hook._is_stateful for hook in registry.hooks.values())]


class _Locks:
    """A lock for each model, or for the first registry of one with caches, which stays when the model is compiled."""

    def __init__(self) -> None:
        self.after_fork()
        mend_after_fork(self)

    def after_fork(self) -> None:
        """In the child of a fork. Threads of the parent may have held them."""
        self._known: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()

    def of(self, what: Any) -> threading.RLock:
        # For a callback that draws with the same model, it can be taken again.
        return self._known.setdefault(what, threading.RLock())


_locks = _Locks()
