"""A pytest plugin: every pipeline of diffusers that a test calls is called through a guard in mode `unsafe_off`.

Used by `diffusers_suites.py`.
"""

from __future__ import annotations

import functools
import inspect
import os
import weakref
from contextvars import ContextVar
from pathlib import Path

import structlog
from diffusers import DiffusionPipeline

from apl_guard import Guard, Policy
from apl_guard.adapters.diffusers.families import reason_against

OFF = Policy.model_validate(
    {
        "apiVersion": "apl-guard/v1",
        "kind": "Policy",
        "metadata": {"name": "off", "version": 1},
        "spec": {
            "mode": "unsafe_off",
            "rules": [{"id": "prefix", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}],
        },
    }
)

_guards: weakref.WeakKeyDictionary[DiffusionPipeline, Guard] = weakref.WeakKeyDictionary()
_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
_calls = 0


@functools.cache
def _guarded(cls: type) -> type:
    """A pipeline class whose objects are called through a guard; all else is as it was."""

    @functools.wraps(cls.__call__)
    def call(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if _is_inside.get():  # the guard calls the pipe
            return cls.__call__(self, *args, **kwargs)
        if self not in _guards:
            _guards[self] = Guard(self, OFF)
        global _calls
        _calls += 1
        token = _is_inside.set(True)
        try:
            return _guards[self](*args, **kwargs)
        finally:
            _is_inside.reset(token)

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**names, "__call__": call})


def _is_covered(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, DiffusionPipeline) and reason_against(thing) is None


def pytest_configure() -> None:
    """Records of the guard go nowhere: a test may look at what is logged."""

    def drop(*_: object) -> dict[str, object]:
        raise structlog.DropEvent

    structlog.configure(processors=[drop])


def pytest_collection_modifyitems(items) -> None:  # type: ignore[no-untyped-def]
    """Put guarded classes where the tests look for pipelines: in their classes and their modules."""
    owners = {owner for item in items for owner in (item.module, *getattr(item.cls, "__mro__", ()))}
    for owner in owners - {object}:
        for name, value in list(vars(owner).items()):
            if _is_covered(value):
                setattr(owner, name, _guarded(value))


def pytest_sessionfinish() -> None:
    """Say how many calls went through a guard, so that nobody compares two unguarded runs."""
    Path(os.environ["APL_GUARD_CALLS"]).write_text(str(_calls))
