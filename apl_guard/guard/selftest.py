"""Canary prompts through the real pipe: whether the guard acts, shown before the first user comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from apl_guard.errors import SelfTestFailed

if TYPE_CHECKING:
    from apl_guard.guard.call import Guarded

__all__ = ["CANARIES", "SelfTest", "run_canaries"]

CANARIES = ("a photo of a man", "a portrait of Mara Voss")


@dataclass(frozen=True)
class SelfTest:
    """What canary prompts showed."""

    prompts: int
    """How many there were."""
    prefix: str
    """Name of the prefix that was in front of each."""
    change: Mapping[str, float]
    """Slot → the least that the prefix moved what the text encoder gave, relative to its size. Empty where the
    text encoder is out of reach."""
    seconds: float


def run_canaries(generate: Callable[..., Guarded], prompts: Sequence[str], arguments: Mapping[str, Any]) -> SelfTest:
    """Send each canary prompt on the way that every prompt takes, records and receipt included.

    Args:
        generate: The guard's own.
        prompts: The canaries.
        arguments: Further arguments of each call. The pictures are thrown away.

    Raises:
        SelfTestFailed: A canary was not answered, or was answered without a prefix.
    """
    began = perf_counter()
    change: dict[str, float] = {}
    prefix = None
    for number, prompt in enumerate(prompts):
        try:
            outcome = generate(prompt, **arguments).outcome
        except Exception as error:
            raise SelfTestFailed(f"canary {number} failed with {type(error).__name__}: {error}") from error
        if not outcome.prefix or not any(map(any, outcome.prefix_rows.values())):
            raise SelfTestFailed(
                f"canary {number} was answered without a prefix (effective action '{outcome.effective}'); "
                "expected a policy in mode 'enforce' that anonymizes it"
            )
        prefix = outcome.prefix
        for slot, found in outcome.change.items():
            change[slot] = min([*found, change.get(slot, float("inf"))])
    if prefix is None:
        raise SelfTestFailed("no canary prompts; expected at least one")
    return SelfTest(len(prompts), prefix, change, perf_counter() - began)
