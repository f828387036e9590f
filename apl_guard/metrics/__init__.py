"""Prometheus metrics. Names and labels are part of the public interface; docs/metrics.md explains each.

No label ever comes from a request: every label takes its values from a closed set, or from what the configuration
names. Anything else counts as `other`, so no caller can make a new series.
"""

from __future__ import annotations

from apl_guard.metrics.instruments import Metrics
from apl_guard.metrics.labels import ACTIONS, DISPOSITIONS, OTHER, RELOADS, RESULTS, VERDICTS, Stage
from apl_guard.metrics.serve import MetricsServer, is_multiprocess, of_all_processes, serve
from apl_guard.metrics.watch import Watch

__all__ = [
    "ACTIONS",
    "DISPOSITIONS",
    "OTHER",
    "RELOADS",
    "RESULTS",
    "VERDICTS",
    "Metrics",
    "MetricsServer",
    "Stage",
    "Watch",
    "is_multiprocess",
    "of_all_processes",
    "serve",
]
