"""What a guard is made of, put together before its first call: what is missing shows when the service starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from apl_guard.audit import AuditLog
from apl_guard.backend import Backend, adapter_for
from apl_guard.detect.leaks import LeakWatch
from apl_guard.detect.output import OutputCheck
from apl_guard.errors import InvalidInput
from apl_guard.guard.leak_samples import LeakSamples
from apl_guard.guard.selftest import SelfTests
from apl_guard.in_force.reloadable import ReloadablePolicy
from apl_guard.metrics import Metrics, Watch
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.registry import PrefixRegistry, RegistryEntry
from apl_guard.registry.finder import PrefixFinder
from apl_guard.tracing import Tracing

__all__ = ["Parts", "put_together"]

_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "prefix": ((str, Path, Prefix), "a prefix, its folder or its name; read one with Prefix.load(FOLDER)"),
    "registry": ((str, os.PathLike, PrefixRegistry), "a folder, a URL, owner/name on the hub, or a PrefixRegistry"),
    "audit": ((str, os.PathLike, AuditLog), "a folder or an AuditLog"),
    "metrics_registry": ((CollectorRegistry,), "a CollectorRegistry of prometheus_client"),
    "tracing": ((Tracing,), "Tracing()"),
    "output_check": ((OutputCheck,), "OutputCheck(recogniser, gallery, threshold)"),
    "leak_watch": ((LeakWatch,), "LeakWatch(recogniser, threshold, share=…)"),
}
"""Argument of `Guard` → its types, besides None, and what is said of others."""


@dataclass(frozen=True)
class Parts:
    """The parts of one guard. `Guard` says what may be given for each."""

    backend: Backend
    audit: AuditLog
    finder: PrefixFinder
    metrics: Metrics
    metrics_registry: CollectorRegistry
    policy: ReloadablePolicy
    tracing: Tracing | None
    output_check: OutputCheck | None
    leak_samples: LeakSamples | None
    self_tests: SelfTests
    opened: ExitStack
    """What ends with the guard."""

    def watch(self) -> Watch:
        """Begin to watch a call."""
        return self.metrics.watch(self.backend.name, self.tracing)


def put_together(
    pipe: Any,
    policy: str | Path | Policy,
    *,
    prefix: str | Path | Prefix | None,
    registry: PrefixRegistry | str | Path | None,
    audit: str | Path | AuditLog | None,
    audit_witness: str | Path | Iterable[str | Path],
    metrics_registry: CollectorRegistry | None,
    metrics_tenants: Iterable[str],
    tracing: Tracing | None,
    output_check: OutputCheck | None,
    leak_watch: LeakWatch | None,
) -> Parts:
    """Make the parts from what was given to a guard; see `Guard` for arguments and errors."""
    if isinstance(audit, AuditLog) and audit_witness:
        raise InvalidInput("this log has its own witnesses; name them where it is made", where="audit_witness")
    _check_types(
        metrics_tenants,
        prefix=prefix,
        registry=registry,
        audit=audit,
        metrics_registry=metrics_registry,
        tracing=tracing,
        output_check=output_check,
        leak_watch=leak_watch,
    )
    backend = adapter_for(pipe)
    with ExitStack() as opened:
        log = audit if isinstance(audit, AuditLog) else AuditLog(audit, witness=audit_witness)
        if log is not audit:
            opened.callback(log.close)
        finder = _finder(backend, prefix, registry)
        metrics_registry = metrics_registry or CollectorRegistry()
        metrics = Metrics.on(metrics_registry, metrics_tenants)
        metrics.introduce(backend.name, log.sink)
        has_check = output_check is not None
        reloadable = ReloadablePolicy(policy, backend, finder, log, metrics, has_output_check=has_check)
        opened.callback(reloadable.close)
        return Parts(
            backend=backend,
            audit=log,
            finder=finder,
            metrics=metrics,
            metrics_registry=metrics_registry,
            policy=reloadable,
            tracing=tracing,
            output_check=output_check,
            leak_samples=None if leak_watch is None else LeakSamples(leak_watch, backend, log, metrics),
            self_tests=SelfTests(backend.name, metrics),
            opened=opened.pop_all(),  # nothing went wrong: it stays open
        )


def _finder(
    backend: Backend, prefix: str | Path | Prefix | None, registry: PrefixRegistry | str | Path | None
) -> PrefixFinder:
    registry = registry if isinstance(registry, PrefixRegistry) else PrefixRegistry(registry)
    given = registry.open(prefix) if isinstance(prefix, str | Path) else prefix
    if isinstance(given, Prefix):
        given = RegistryEntry(given.metadata.name, Path(given.metadata.name), given)
    return PrefixFinder(backend, registry, given)


def _check_types(metrics_tenants: object, **given: object) -> None:
    """Refuse what is of another type than `Guard` takes: some of it would show in the first call only, or never."""
    for where, found in given.items():
        types, expected = _TYPES[where]
        if found is not None and not isinstance(found, types):
            raise InvalidInput(f"found {type(found).__name__}; expected {expected}", where=where)
    if isinstance(metrics_tenants, str):  # each letter would be a tenant
        raise InvalidInput("found one text; expected several, such as ['acme']", where="metrics_tenants")
