"""Canary prompts through the real pipe: whether the guard acts, shown before the first user comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from apl_guard.errors import SelfTestFailed

if TYPE_CHECKING:
    from apl_guard.guard.call import Guarded
    from apl_guard.metrics import Metrics

__all__ = ["CANARIES", "SelfTest", "SelfTests"]

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


class SelfTests:
    """The self-tests of one guard. While one runs, what the one before it showed holds.

    Args:
        backend: What is tested.
        metrics: Where each is counted.
    """

    def __init__(self, backend: str, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._problem: str | None = None
        """What the last one found wrong."""
        self.ready = False
        """Whether the last one passed."""

    def check(self) -> None:
        """Make sure that the last one did not fail.

        Raises:
            SelfTestFailed: It did.
        """
        if self._problem is not None:
            raise SelfTestFailed(f"the last self-test failed, so there is no image: {self._problem}")

    def run(self, generate: Callable[..., Guarded], prompts: Sequence[str], arguments: Mapping[str, Any]) -> SelfTest:
        """Run one; see `Guard.self_test`.

        Args:
            generate: The guard's own.
            prompts: The canaries.
            arguments: Further arguments of each call.

        Raises:
            SelfTestFailed: A canary was not answered, or was answered without a prefix.
        """
        try:
            result = _run_canaries(generate, prompts, arguments)
        except SelfTestFailed as error:
            self.ready, self._problem = False, str(error)
            self._metrics.self_tested(self._backend, None, success=False)
            raise
        self.ready, self._problem = True, None
        self._metrics.self_tested(self._backend, result.prefix, success=True)
        return result


def _run_canaries(generate: Callable[..., Guarded], prompts: Sequence[str], arguments: Mapping[str, Any]) -> SelfTest:
    """Send each canary prompt on the way that every prompt takes, records and receipt included.

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
