"""One call, watched: how long each stage takes, where it fails and how it ends."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from apl_guard.errors import DetectorFailed, PrefixNotApplied
from apl_guard.metrics.labels import BACKEND_STAGE, OTHER, Stage, action_of, verdict_of
from apl_guard.request.context import current_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from apl_guard.backend import Generation
    from apl_guard.decision import Decision, Protection
    from apl_guard.detect.output import Looked
    from apl_guard.metrics.instruments import Metrics
    from apl_guard.policy import Policy
    from apl_guard.prefix import Prefix
    from apl_guard.request import GenerationRequest
    from apl_guard.tracing import CallSpans, Tracing

__all__ = ["Watch"]


class Watch:
    """Watches one call: enter it when the call begins.

    Args:
        metrics: Where everything is counted.
        backend: The backend, as a label.
        tracing: Where spans go, or None.
    """

    def __init__(self, metrics: Metrics, backend: str, tracing: Tracing | None) -> None:
        self._metrics = metrics
        self._backend = backend
        self._spans: CallSpans | None = tracing.call(backend) if tracing is not None else None
        self._started = perf_counter()
        self._failed_in: str | None = None
        self.generation_seconds: float | None = None
        """How long the backend took, or None where it was not asked."""

    def __enter__(self) -> Watch:
        self._metrics.entered(self._backend, 1)
        if self._spans is not None:
            self._spans.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spans is not None:
            self._spans.__exit__(kind, error, trace)
        self._metrics.entered(self._backend, -1)

    @property
    def overhead_seconds(self) -> float:
        """How long the guard itself has taken until now."""
        return perf_counter() - self._started - (self.generation_seconds or 0)

    def stage(self, stage: Stage) -> _Timed:
        """Time a stage, and remember it if it fails."""
        return _Timed(self, stage.value, partial(self._metrics.spent, stage, self._backend))

    def generating(self) -> _Timed:
        """Time the backend."""
        return _Timed(self, BACKEND_STAGE, partial(setattr, self, "generation_seconds"))

    def generated(self, generation: Generation) -> None:
        """Note what the adapter itself did around the pipe, where it says how long the pipe took."""
        if generation.seconds is not None and self.generation_seconds is not None:
            self._metrics.spent(Stage.INJECT, self._backend, max(0.0, self.generation_seconds - generation.seconds))
            self.generation_seconds = min(generation.seconds, self.generation_seconds)

    def decided(self, decision: Decision, policy: Policy, request: GenerationRequest) -> None:
        """Count a decision."""
        self._metrics.decided(decision, policy, self._backend)
        if self._spans is not None:
            self._spans.decided(decision, request, verdict_of(decision), action_of(decision))

    def recording(self, sink: str) -> _Recording:
        """Count a record that is written, or cannot be."""
        return _Recording(self._metrics, sink)

    def used(self, prefix: Prefix) -> None:
        """Note which prefix was in front."""
        self._metrics.used(prefix)

    def looked(self, looked: Looked) -> None:
        """Note what the output check saw."""
        self._metrics.looked(looked)

    def went_on(self, stage: Stage, error: BaseException, disposition: str = "passed_through") -> None:
        """Count an error after which the call went on: unprotected, as the policy says, or where it only looks."""
        self._metrics.failed(stage.value, error, disposition)

    def released(self, decision: Decision, images: int, protection: Protection) -> None:
        """Count images that are handed out.

        Args:
            decision: What was decided.
            images: How many.
            protection: Whether what the policy asks for was done for them.
        """
        self._metrics.released(decision, self._backend, images, protection)
        if self._spans is not None:
            self._spans.released(protection.value)

    def ended(self, result: str, policy: Policy, error: BaseException | None = None) -> None:
        """Count how the call ended.

        Args:
            result: One of `RESULTS`.
            policy: The policy in force.
            error: What made it fail.
        """
        metrics, mode = self._metrics, policy.mode.value
        metrics.ended(result, current_context().tenant)
        metrics.took(self._backend, mode, result, overhead=self.overhead_seconds, generation=self.generation_seconds)
        if error is not None and result in ("failed", "backend_error") and not isinstance(error, DetectorFailed):
            # Those of detectors were counted with the decision.
            # Only after the call can be seen that an encoder did not receive the prefix.
            stage = Stage.INJECT.value if isinstance(error, PrefixNotApplied) else self._failed_in
            metrics.failed(stage or OTHER, error)
        if self._spans is not None:
            self._spans.ended(result, error)


class _Timed:
    """The time of one stage, or of the backend."""

    __slots__ = ("_began", "_name", "_span", "_took", "_watch")

    def __init__(self, watch: Watch, name: str, took: Callable[[float], None]) -> None:
        self._watch = watch
        self._name = name
        self._took = took
        spans = watch._spans
        self._span: AbstractContextManager[object] | None = None if spans is None else spans.stage(name)

    def __enter__(self) -> None:
        if self._span is not None:
            self._span.__enter__()
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._took(perf_counter() - self._began)
        if error is not None:
            self._watch._failed_in = self._name
        if self._span is not None:
            self._span.__exit__(kind, error, trace)


class _Recording:
    """The fate of one record."""

    __slots__ = ("_metrics", "_sink")

    def __init__(self, metrics: Metrics, sink: str) -> None:
        self._metrics = metrics
        self._sink = sink

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._metrics.recorded(self._sink, success=kind is None)
