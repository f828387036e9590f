"""The guard's instruments on a Prometheus registry."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import Counter as Multiset
from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from prometheus_client import CollectorRegistry

from apl_guard.errors import MetricsUnavailable
from apl_guard.metrics import labels
from apl_guard.metrics.families import Families
from apl_guard.metrics.labels import OTHER, Known, Stage
from apl_guard.metrics.room import prepare_files
from apl_guard.metrics.serve import is_multiprocess
from apl_guard.metrics.watch import Watch
from apl_guard.policy import Policy

if TYPE_CHECKING:
    from apl_guard.decision import Decision, Protection
    from apl_guard.detect.output import Looked
    from apl_guard.prefix import Prefix
    from apl_guard.tracing import Tracing

__all__ = ["Metrics"]

_P = ParamSpec("_P")

_log = logging.getLogger("apl_guard")


def _beside(observe: Callable[Concatenate[Metrics, _P], None]) -> Callable[Concatenate[Metrics, _P], None]:
    """A metric that cannot be kept, such as on a full disk, neither stops a call nor changes how it ends."""

    @functools.wraps(observe)
    def call(self: Metrics, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            observe(self, *args, **kwargs)
        except Exception as error:  # after one that says why, the library may fail in other ways
            _log.error("metrics are incomplete: %s", getattr(error, "strerror", None) or type(error).__name__)

    return call


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
        try:
            if is_multiprocess():
                prepare_files()
            self._families = Families(registry)
            self._one = self._families.one
        except OSError as error:
            raise MetricsUnavailable(
                f"{error.filename}: {error.strerror}; PROMETHEUS_MULTIPROC_DIR has to name a folder that is there, "
                "that this process can write to, and that has room"
            ) from error

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

    @_beside
    def introduce(self, backend: str, sink: str) -> None:
        """Make a backend and the place of its records known, so that they are counted by name."""
        backend = self._backends.add(backend)
        self._families.in_progress.labels(backend)
        for stage in Stage:
            self._families.stages.labels(stage.value, backend)
        for outcome in labels.AUDIT_OUTCOMES:
            self._families.audit_events.labels(sink, outcome)

    @_beside
    def in_force(self, policy: Policy, instead_of: Policy | None = None) -> None:
        """Note that a policy decides from now on, in place of another."""
        with self._lock:
            if instead_of is not None:
                self._out_of_force(instead_of)
            self._policies.add(policy.name)
            self._versions.add(policy.digest)
            for rule in policy.rules:
                self._rules.add(rule.id)
            new = self._describe(policy)
            self._in_force[new] += 1
            self._families.policy_info.labels(*new).set(1)
            self._families.reload_success.labels(new[0]).set(1)
        rollout = policy.spec.rollout
        self._families.rollout.labels(new[0]).set(1.0 if rollout is None else rollout.percent / 100)
        self._families.reloaded.set(time())

    @_beside
    def out_of_force(self, policy: Policy) -> None:
        """Note that a policy decides no more for one guard, and none does in its place."""
        with self._lock:
            self._out_of_force(policy)

    def _out_of_force(self, policy: Policy) -> None:
        old = self._describe(policy)
        self._in_force[old] -= 1
        if self._in_force[old] <= 0:
            self._families.policy_info.labels(*old).set(0)
            self._families.reload_success.labels(old[0]).set(1)

    def _describe(self, policy: Policy) -> tuple[str, ...]:
        digest = self._versions(policy.digest)
        version = OTHER if digest == OTHER else str(policy.version)
        return self._policies(policy.name), version, digest, policy.mode.value

    @_beside
    def reloaded(self, outcome: str, policy: Policy) -> None:
        """Count an attempt to put a changed policy in force.

        Args:
            outcome: One of `RELOADS`.
            policy: The one that is in force after it.
        """
        self._families.reloads.labels(outcome).inc()
        self._families.reload_success.labels(self._policies(policy.name)).set(outcome != "rejected")
        if outcome != "rejected":
            self._families.reloaded.set(time())

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
                self._one(self._families.selftest, backend, name).set(success)
                self._one(self._families.selftest_time, backend, name).set(time())

    def watch(self, backend: str, tracing: Tracing | None = None) -> Watch:
        """Begin to watch a call."""
        return Watch(self, self._backends(backend), tracing)

    @_beside
    def entered(self, backend: str, change: int) -> None:
        """Count a call that begins (1) or ends (-1)."""
        self._one(self._families.in_progress, backend).inc(change)

    @_beside
    def spent(self, stage: Stage, backend: str, seconds: float) -> None:
        """Note how long a stage took."""
        self._one(self._families.stages, stage.value, backend).observe(seconds)

    @_beside
    def decided(self, decision: Decision, policy: Policy, backend: str) -> None:
        """Count a decision, what was found for it, and which detectors failed."""
        name = self._policies(decision.policy)
        self._one(self._families.requests, name, backend, labels.verdict_of(decision), labels.action_of(decision)).inc()
        if decision.findings:
            rules = {reason.channel: reason.rule for reason in decision.reasons}
            for finding in decision.findings:
                channel = finding.channel.value
                category = finding.source.partition(".")[0]
                self._one(self._families.findings, name, self._rules(rules.get(channel)), category, channel).inc()
        for kind in decision.failed.values():
            disposition = labels.disposition_of(decision, policy.spec.on_error)
            self._one(self._families.errors, Stage.DETECT.value, labels.error_type(kind), disposition).inc()

    @_beside
    def recorded(self, sink: str, *, success: bool) -> None:
        """Count a record that was written, or could not be."""
        self._one(self._families.audit_events, sink, "written" if success else "failed").inc()

    @_beside
    def used(self, prefix: Prefix) -> None:
        """Note which prefix is in use."""
        digest = self._versions.add(prefix.digest)
        self._one(self._families.prefix_info, self._prefixes.add(prefix.metadata.name), digest, str(prefix.n)).set(1)

    @_beside
    def looked(self, looked: Looked) -> None:
        """Count the pictures that the output check looked at."""
        matches = {sighting.picture for sighting in looked.sightings}
        for number, faces in enumerate(looked.faces):
            self._one(self._families.looked, "match" if number in matches else "stranger" if faces else "nobody").inc()

    @_beside
    def leak_sampled(self, seen: Iterable[str]) -> None:
        """Count guarded pictures that were compared with plain ones of their prompt, each by one of `LEAKS`."""
        for each in seen:
            self._one(self._families.leaks, str(each)).inc()

    @_beside
    def released(self, decision: Decision, backend: str, images: int, protection: Protection) -> None:
        """Count images that are handed out.

        Args:
            decision: What was decided.
            backend: Where they come from.
            images: How many.
            protection: Whether what the policy asks for was done for them.
        """
        name = self._policies(decision.policy)
        self._one(self._families.images, name, backend, labels.action_of(decision), protection.value).inc(images)

    @_beside
    def failed(self, stage: str, error: BaseException, disposition: str = "blocked") -> None:
        """Count an error.

        Args:
            stage: Where it happened.
            error: What was raised.
            disposition: What followed, one of `DISPOSITIONS`.
        """
        self._one(self._families.errors, stage, labels.error_type(error), disposition).inc()

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
        self._one(self._families.overhead, backend, mode).observe(overhead)
        if generation is not None:
            self._one(self._families.backend, backend, result).observe(generation)

    @_beside
    def ended(self, result: str, tenant: str | None = None) -> None:
        """Count how a call ended.

        Args:
            result: One of `RESULTS`.
            tenant: For whom it was made.
        """
        self._one(self._families.outcomes, result).inc()
        if self._counts_tenants:
            self._one(self._families.tenant_outcomes, self._tenants(tenant), result).inc()


class _Shared:
    """Stands for all registries of this process."""


_shared = _Shared()
_lock = threading.Lock()
_by_registry: weakref.WeakKeyDictionary[object, Metrics] = weakref.WeakKeyDictionary()
