"""Prometheus metrics. Names and labels are part of the public interface.

No label ever comes from a request: policies, actions and results are closed sets.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from apl_guard.decision import Decision

if TYPE_CHECKING:
    from apl_guard.prefix import Prefix

__all__ = ["RELOADS", "RESULTS", "Metrics"]

RESULTS = ("passed", "blocked", "invalid", "failed", "backend_error")
"""How a call can end: an image was released, the policy blocked it, its arguments could not be read, the guard
failed, the backend failed."""

RELOADS = ("accepted", "unchanged", "rejected")
"""How reloading a policy can end: another is in force, the file says the same, the one before stays."""

_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_GENERATION_BUCKETS = (0.01, 0.04, 0.16, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)


class Metrics:
    """The guard's instruments on one registry. Guards that share a registry share them: use `Metrics.on`.

    Example:
        >>> registry = CollectorRegistry()
        >>> Metrics.on(registry).ended("passed", overhead=0.002, generation=1.5)
        >>> registry.get_sample_value("apl_guard_outcomes_total", {"result": "passed"})
        1.0
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "apl_guard_decisions", "Decisions by policy and action.", ["policy", "action"], registry=registry
        )
        self._outcomes = Counter("apl_guard_outcomes", "How calls ended.", ["result"], registry=registry)
        self._overhead = Histogram(
            "apl_guard_overhead_seconds",
            "Time that the guard itself took for a call.",
            buckets=_OVERHEAD_BUCKETS,
            registry=registry,
        )
        self._generation = Histogram(
            "apl_guard_backend_duration_seconds",
            "Time that the backend took for a call.",
            buckets=_GENERATION_BUCKETS,
            registry=registry,
        )
        # A gauge, because Info does not work with several processes.
        self._prefix = Gauge(
            "apl_guard_prefix_info",
            "1 for each prefix that was used.",
            ["prefix", "digest", "vectors"],
            multiprocess_mode="max",
            registry=registry,
        )
        self._reloads = Counter(
            "apl_guard_policy_reloads",
            "Attempts to put a changed policy in force.",
            ["outcome"],
            registry=registry,
        )
        self._reloaded = Gauge(
            "apl_guard_policy_last_reload_success_timestamp_seconds",
            "When a policy file was last read without fault.",
            multiprocess_mode="max",
            registry=registry,
        )
        for outcome in RELOADS:
            self._reloads.labels(outcome)
        for result in RESULTS:
            self._outcomes.labels(result)  # so that a rate is 0 before the first event, not absent

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Metrics:
        """The instruments on a registry, made when they are first asked for."""
        with _lock:
            metrics = _by_registry.get(registry)
            if metrics is None:
                metrics = _by_registry[registry] = cls(registry)
            return metrics

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        self._decisions.labels(policy=decision.policy, action=decision.action.value).inc()

    def used(self, prefix: Prefix) -> None:
        """Note which prefix is in use."""
        self._prefix.labels(prefix.metadata.name, prefix.digest, str(prefix.n)).set(1)

    def policy_reloaded(self, outcome: str) -> None:
        """Count an attempt to put a changed policy in force.

        Args:
            outcome: One of `RELOADS`.
        """
        self._reloads.labels(outcome).inc()
        if outcome != "rejected":
            self._reloaded.set_to_current_time()

    def ended(self, result: str, *, overhead: float, generation: float | None) -> None:
        """Count how a call ended.

        Args:
            result: One of `RESULTS`.
            overhead: Seconds that the guard took.
            generation: Seconds that the backend took, or None where it was not asked.
        """
        self._outcomes.labels(result=result).inc()
        self._overhead.observe(overhead)
        if generation is not None:
            self._generation.observe(generation)


_lock = threading.Lock()
_by_registry: weakref.WeakKeyDictionary[CollectorRegistry, Metrics] = weakref.WeakKeyDictionary()
