"""Every family of metrics: its name, its labels, its buckets. docs/metrics.md explains each."""

from __future__ import annotations

from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from apl_guard.errors import PrefixNotApplied
from apl_guard.metrics.labels import ERROR_TYPES, LEAKS, OTHER, RELOADS, RESULTS, SEEN, Stage

__all__ = ["Families"]

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)

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


class Families:
    """Every family of metrics, on one registry.

    Args:
        registry: Where they are registered.

    Raises:
        OSError: Where several processes count together, their folder cannot be used.

    Example:
        >>> registry = CollectorRegistry()
        >>> families = Families(registry)
        >>> families.one(families.outcomes, "blocked").inc()
        >>> registry.get_sample_value("apl_guard_outcomes_total", {"result": "blocked"})
        1.0
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, what: str, *names: str) -> Counter:
            return Counter(f"apl_guard_{name}", what, names, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *names: str) -> Histogram:
            return Histogram(f"apl_guard_{name}", what, names, buckets=buckets, registry=registry)

        def gauge(name: str, what: str, mode: str, *names: str) -> Gauge:
            # Only those of living processes count: the others say nothing about now.
            return Gauge(f"apl_guard_{name}", what, names, multiprocess_mode=mode, registry=registry)  # type: ignore[arg-type]

        self.requests = counter(
            "requests", "Decisions: what the rules said and what was done.", "policy", "backend", "verdict", "action"
        )
        self.outcomes = counter("outcomes", "How calls ended.", "result")
        self.images = counter(
            "images",
            "Released images, by whether what the policy asks for was done for them.",
            *("policy", "backend", "action", "protection"),
        )
        self.findings = counter("findings", "What detectors saw in texts.", "policy", "rule", "category", "target")
        self.errors = counter(
            "errors", "Errors by where they happened and what followed.", "stage", "error_type", "disposition"
        )
        self.looked = counter("checked_pictures", "What the output check saw in finished images.", "seen")
        self.leaks = counter("leak_samples", "Guarded images beside plain ones of their prompt.", "seen")
        self.tenant_outcomes = counter(
            "tenant_outcomes", "How calls ended, for the tenants that are to be counted.", "tenant", "result"
        )
        self.stages = histogram(
            "stage_duration_seconds", "Time of the guard's own work, by stage.", OWN_BUCKETS, "stage", "backend"
        )
        self.overhead = histogram(
            "overhead_seconds",
            "Time that the guard itself took for a call: all of it but the backend's.",
            *(OWN_BUCKETS, "backend", "mode"),
        )
        self.backend = histogram(
            "backend_duration_seconds", "Time that the backend took.", BACKEND_BUCKETS, "backend", "outcome"
        )
        self.in_progress = gauge("in_progress_requests", "Calls that are under way.", "livesum", "backend")
        # A gauge, because Info does not work with several processes.
        self.policy_info = gauge(
            "policy_info", "1 for each policy in force.", "livemax", "policy", "version", "digest", "mode"
        )
        self.prefix_info = gauge(
            "prefix_info", "1 for each prefix that was used.", "livemax", "prefix", "digest", "vectors"
        )
        self.rollout = gauge(
            "rollout_ratio", "The share of requests for which decisions are carried out.", "livemostrecent", "policy"
        )
        self.audit_events = counter("audit_events", "Records for the audit log.", "sink", "outcome")
        self.reloads = counter("config_reloads", "Attempts to load a changed policy.", "outcome")
        self.reload_success = gauge(
            *("config_last_reload_successful", "Whether the policy file was good when it was last read.", "livemin"),
            "policy",
        )
        self.reloaded = gauge(
            "config_last_success_timestamp_seconds", "When a policy file was last read without fault.", "livemostrecent"
        )
        self.selftest = gauge(
            "selftest_success", "Whether the last self-test found the prefix at work.", "livemin", "backend", "prefix"
        )
        self.selftest_time = gauge(
            "selftest_timestamp_seconds", "When the last self-test ended.", "livemostrecent", "backend", "prefix"
        )
        self._series: dict[tuple[str, ...], Any] = {}
        self._start_at_zero()

    def one(self, metric: _Metric, *values: str) -> _Metric:
        """The series with these labels. The library takes ten times as long to look it up; there are few of them."""
        key = (metric._name, *values)
        series: _Metric | None = self._series.get(key)
        if series is None:
            series = self._series[key] = metric.labels(*values)
        return series

    def _start_at_zero(self) -> None:
        """A rate is 0 before the first event, not absent: an alert would miss the first one."""
        for result in RESULTS:
            self.outcomes.labels(result)
        for seen in SEEN:
            self.looked.labels(seen)
        for seen in LEAKS:
            self.leaks.labels(seen)
        for kind in (*sorted(ERROR_TYPES), OTHER):
            self.errors.labels(Stage.DETECT.value, kind, "fallback")
            for stage in (Stage.DETECT, Stage.FIND_PREFIX, Stage.CHECK_OUTPUT):
                self.errors.labels(stage.value, kind, "passed_through")
        self.errors.labels(Stage.INJECT.value, PrefixNotApplied.__name__, "blocked")
        for outcome in RELOADS:
            self.reloads.labels(outcome)
