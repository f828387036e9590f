"""The guard's instruments on a Prometheus registry."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import Counter as Multiset
from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from apl_guard.errors import MetricsUnavailable, PrefixNotApplied
from apl_guard.metrics import labels
from apl_guard.metrics.labels import ERROR_TYPES, OTHER, RELOADS, RESULTS, Known, Stage
from apl_guard.metrics.serve import is_multiprocess
from apl_guard.metrics.watch import Watch
from apl_guard.policy import Policy

if TYPE_CHECKING:
    from apl_guard.decision import Decision
    from apl_guard.detect.output import Looked
    from apl_guard.prefix import Prefix
    from apl_guard.tracing import Tracing

__all__ = ["Metrics"]

_P = ParamSpec("_P")
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)

_log = logging.getLogger("apl_guard")

OWN_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Seconds. Of the guard's own work."""
BACKEND_BUCKETS = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    327.68,
)
"""Seconds. OpenTelemetry's buckets for generative models, and two more for slow pictures."""


def _beside(observe: Callable[Concatenate[Metrics, _P], None]) -> Callable[Concatenate[Metrics, _P], None]:
    """A metric that cannot be kept, such as on a full disk, neither stops a call nor changes how it ends."""

    @functools.wraps(observe)
    def call(self: Metrics, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            observe(self, *args, **kwargs)
        except OSError as error:
            _log.error("metrics are incomplete: %s", error.strerror or type(error).__name__)

    return cast("Callable[Concatenate[Metrics, _P], None]", call)


class Metrics:
    """The guard's instruments on one registry. Guards that share a registry share them: use `Metrics.on`.

    Args:
        registry: Where they are registered.

    Raises:
        MetricsUnavailable: The folder of PROMETHEUS_MULTIPROC_DIR cannot be used.

    Example:
        >>> registry = CollectorRegistry()
        >>> Metrics.on(registry).ended("passed")
        >>> registry.get_sample_value("apl_guard_outcomes_total", {"result": "passed"})
        1.0
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._backends = Known()
        self._policies = Known()
        self._versions = Known(most=256)
        self._rules = Known(most=256)
        self._prefixes = Known()
        self._tenants = Known()
        self._in_force: Multiset[tuple[str, ...]] = Multiset()
        self._tested: dict[str, dict[str, None]] = {}
        """Backend → the prefixes of its self-tests."""
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], Any] = {}
        try:
            self._make(registry)
        except OSError as error:
            raise MetricsUnavailable(
                f"{error.filename}: {error.strerror}; PROMETHEUS_MULTIPROC_DIR has to name a folder that is there and "
                "that this process can write to"
            ) from error

    def _make(self, registry: CollectorRegistry) -> None:
        def counter(name: str, what: str, *names: str) -> Counter:
            return Counter(f"apl_guard_{name}", what, names, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *names: str) -> Histogram:
            return Histogram(f"apl_guard_{name}", what, names, buckets=buckets, registry=registry)

        def gauge(name: str, what: str, mode: str, *names: str) -> Gauge:
            # Only those of living processes count: the others say nothing about now.
            return Gauge(f"apl_guard_{name}", what, names, multiprocess_mode=mode, registry=registry)  # type: ignore[arg-type]

        self._requests = counter(
            "requests", "Decisions: what the rules said and what was done.", "policy", "backend", "verdict", "action"
        )
        self._outcomes = counter("outcomes", "How calls ended.", "result")
        self._images = counter(
            "images",
            "Released images, by whether what the rules say holds for them.",
            *("policy", "backend", "action", "effective"),
        )
        self._findings = counter("findings", "What detectors saw in texts.", "policy", "rule", "category", "target")
        self._errors = counter(
            "errors", "Errors by where they happened and what followed.", "stage", "error_type", "disposition"
        )
        self._looked = counter("checked_pictures", "What the output check saw in finished pictures.", "seen")
        self._tenant_outcomes = counter(
            "tenant_outcomes", "How calls ended, for the tenants that are to be counted.", "tenant", "result"
        )
        self._stages = histogram(
            "stage_duration_seconds", "Time of the guard's own work, by stage.", OWN_BUCKETS, "stage", "backend"
        )
        self._overhead = histogram(
            "overhead_seconds",
            "Time that the guard itself took for a call: all of it but the backend's.",
            *(OWN_BUCKETS, "backend", "mode"),
        )
        self._backend = histogram(
            "backend_duration_seconds", "Time that the backend took.", BACKEND_BUCKETS, "backend", "outcome"
        )
        self._in_progress = gauge("in_progress_requests", "Calls that are under way.", "livesum", "backend")
        # A gauge, because Info does not work with several processes.
        self._policy_info = gauge(
            "policy_info", "1 for each policy in force.", "livemax", "policy", "version", "digest", "mode"
        )
        self._prefix_info = gauge(
            "prefix_info", "1 for each prefix that was used.", "livemax", "prefix", "digest", "vectors"
        )
        self._rollout = gauge(
            "rollout_ratio", "The share of requests for which decisions are carried out.", "livemostrecent", "policy"
        )
        self._audit_events = counter("audit_events", "Records for the audit log.", "sink", "outcome")
        self._reloads = counter("config_reloads", "Attempts to load a changed policy.", "outcome")
        self._reloaded = gauge(
            "config_last_success_timestamp_seconds", "When a policy file was last read without fault.", "livemostrecent"
        )
        self._selftest = gauge(
            "selftest_success", "Whether the last self-test found the prefix at work.", "livemin", "backend", "prefix"
        )
        self._selftest_time = gauge(
            "selftest_timestamp_seconds", "When the last self-test ended.", "livemostrecent", "backend", "prefix"
        )
        # So that a rate is 0 before the first event, not absent: an alert would miss the first one.
        for result in RESULTS:
            self._outcomes.labels(result)
        for seen in labels.SEEN:
            self._looked.labels(seen)
        for kind in (*sorted(ERROR_TYPES), OTHER):
            self._errors.labels(Stage.DETECT.value, kind, "fallback")
            for stage in (Stage.DETECT, Stage.FIND_PREFIX, Stage.CHECK_OUTPUT):
                self._errors.labels(stage.value, kind, "passed_through")
        self._errors.labels(Stage.INJECT.value, PrefixNotApplied.__name__, "blocked")
        for outcome in RELOADS:
            self._reloads.labels(outcome)

    @classmethod
    def on(cls, registry: CollectorRegistry, tenants: Iterable[str] = ()) -> Metrics:
        """The instruments on a registry, made when they are first asked for.

        Where several processes count together, this process has them once, whatever the registry: all of its
        values go to one file.

        Args:
            registry: The registry.
            tenants: Tenants whose outcomes are counted by name. The others count as `other`.

        Raises:
            MetricsUnavailable: The folder of PROMETHEUS_MULTIPROC_DIR cannot be used.
        """
        with _lock:
            key = _shared if is_multiprocess() else registry
            metrics = _by_registry.get(key)
            if metrics is None:
                metrics = _by_registry[key] = cls(registry)
        for tenant in tenants:
            metrics._tenants.add(tenant)
            metrics._counts_tenants = True
        return metrics

    _counts_tenants = False

    def introduce(self, backend: str, sink: str) -> None:
        """Make a backend and the place of its records known, so that they are counted by name."""
        backend = self._backends.add(backend)
        self._in_progress.labels(backend)
        for stage in Stage:
            self._stages.labels(stage.value, backend)
        for outcome in labels.AUDIT_OUTCOMES:
            self._audit_events.labels(sink, outcome)

    def in_force(self, policy: Policy, instead_of: Policy | None = None) -> None:
        """Note that a policy decides from now on, in place of another."""
        with self._lock:
            if instead_of is not None:
                old = self._describe(instead_of)
                self._in_force[old] -= 1
                if self._in_force[old] <= 0:
                    self._policy_info.labels(*old).set(0)
            self._policies.add(policy.name)
            self._versions.add(policy.digest)
            for rule in policy.rules:
                self._rules.add(rule.id)
            new = self._describe(policy)
            self._in_force[new] += 1
            self._policy_info.labels(*new).set(1)
        rollout = policy.spec.rollout
        self._rollout.labels(new[0]).set(1.0 if rollout is None else rollout.percent / 100)
        self._reloaded.set(time())

    def _describe(self, policy: Policy) -> tuple[str, ...]:
        digest = self._versions(policy.digest)
        version = OTHER if digest == OTHER else str(policy.version)
        return self._policies(policy.name), version, digest, policy.mode.value

    def reloaded(self, outcome: str) -> None:
        """Count an attempt to put a changed policy in force.

        Args:
            outcome: One of `RELOADS`.
        """
        self._reloads.labels(outcome).inc()
        if outcome != "rejected":
            self._reloaded.set(time())

    @_beside
    def self_tested(self, backend: str, prefix: str | None, *, success: bool) -> None:
        """Note how a self-test ended.

        Args:
            backend: What was tested.
            prefix: The prefix that was found at work; None where none was.
            success: Whether there was one.
        """
        backend = self._backends(backend)
        with self._lock:
            tested = self._tested.setdefault(backend, {})
            if prefix is not None or not tested:
                tested[labels.NONE if prefix is None else self._prefixes.add(prefix)] = None
            # The last self-test counts for all of a backend: what an earlier one said of another prefix is over.
            for name in tested:
                self._one(self._selftest, backend, name).set(success)
                self._one(self._selftest_time, backend, name).set(time())

    def watch(self, backend: str, tracing: Tracing | None = None) -> Watch:
        """Begin to watch a call."""
        return Watch(self, self._backends(backend), tracing)

    def _one(self, metric: _Metric, *values: str) -> _Metric:
        """The series with these labels. The library takes ten times as long to look it up; there are few of them."""
        key = (metric._name, *values)
        series: _Metric | None = self._series.get(key)
        if series is None:
            series = self._series[key] = metric.labels(*values)
        return series

    @_beside
    def entered(self, backend: str, change: int) -> None:
        """Count a call that begins (1) or ends (-1)."""
        self._one(self._in_progress, backend).inc(change)

    @_beside
    def spent(self, stage: Stage, backend: str, seconds: float) -> None:
        """Note how long a stage took."""
        self._one(self._stages, stage.value, backend).observe(seconds)

    @_beside
    def decided(self, decision: Decision, policy: Policy, backend: str) -> None:
        """Count a decision, what was found for it, and which detectors failed."""
        name = self._policies(decision.policy)
        self._one(self._requests, name, backend, labels.verdict_of(decision), labels.action_of(decision)).inc()
        if decision.findings:
            rules = {reason.channel: reason.rule for reason in decision.reasons}
            for finding in decision.findings:
                channel = finding.channel.value
                category = finding.source.partition(".")[0]
                self._one(self._findings, name, self._rules(rules.get(channel)), category, channel).inc()
        for kind in decision.failed.values():
            disposition = labels.disposition_of(policy.spec.on_error, decision.mode)
            self._one(self._errors, Stage.DETECT.value, labels.error_type(kind), disposition).inc()

    @_beside
    def recorded(self, sink: str, *, success: bool) -> None:
        """Count a record that was written, or could not be."""
        self._one(self._audit_events, sink, "written" if success else "failed").inc()

    @_beside
    def used(self, prefix: Prefix) -> None:
        """Note which prefix is in use."""
        digest = self._versions.add(prefix.digest)
        self._one(self._prefix_info, self._prefixes.add(prefix.metadata.name), digest, str(prefix.n)).set(1)

    @_beside
    def looked(self, looked: Looked) -> None:
        """Count the pictures that the output check looked at."""
        matches = {sighting.picture for sighting in looked.sightings}
        for number, faces in enumerate(looked.faces):
            self._one(self._looked, "match" if number in matches else "stranger" if faces else "nobody").inc()

    @_beside
    def released(self, decision: Decision, backend: str, images: int, effective: str) -> None:
        """Count images that are handed out.

        Args:
            decision: What was decided.
            backend: Where they come from.
            images: How many.
            effective: Whether what the rules say holds for them: true, false, or unknown.
        """
        name = self._policies(decision.policy)
        self._one(self._images, name, backend, labels.action_of(decision), effective).inc(images)

    @_beside
    def failed(self, stage: str, error: BaseException, disposition: str = "blocked") -> None:
        """Count an error.

        Args:
            stage: Where it happened.
            error: What was raised.
            disposition: What followed, one of `DISPOSITIONS`.
        """
        self._one(self._errors, stage, labels.error_type(error), disposition).inc()

    @_beside
    def took(self, backend: str, mode: str, result: str, *, overhead: float, generation: float | None) -> None:
        """Note how long a call took.

        Args:
            backend: Where it went.
            mode: The policy's.
            result: One of `RESULTS`.
            overhead: Seconds that the guard took.
            generation: Seconds that the backend took, or None where it was not asked.
        """
        self._one(self._overhead, backend, mode).observe(overhead)
        if generation is not None:
            self._one(self._backend, backend, result).observe(generation)

    @_beside
    def ended(self, result: str, tenant: str | None = None) -> None:
        """Count how a call ended.

        Args:
            result: One of `RESULTS`.
            tenant: For whom it was made.
        """
        self._one(self._outcomes, result).inc()
        if self._counts_tenants:
            self._one(self._tenant_outcomes, self._tenants(tenant), result).inc()


class _Shared:
    """Stands for all registries of this process."""


_shared = _Shared()
_lock = threading.Lock()
_by_registry: weakref.WeakKeyDictionary[object, Metrics] = weakref.WeakKeyDictionary()
