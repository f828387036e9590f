"""Calls about which nothing is decided, and errors that say there is no image."""

from __future__ import annotations

from apl_guard.backend import BackendFailed
from apl_guard.errors import AplGuardError, GuardUnavailable
from apl_guard.guard.parts import Parts
from apl_guard.metrics import Watch
from apl_guard.policy import Policy
from apl_guard.request.ids import new_id

__all__ = ["refuse", "unavailable"]


def refuse(error: Exception, parts: Parts, policy: Policy, watch: Watch, *, result: str | None = None) -> None:
    """Record and count a call about which nothing is decided, such as one whose arguments the adapter could not read.

    Args:
        error: Why.
        parts: Those of the guard.
        policy: The policy in force.
        watch: What times and counts the call.
        result: How the call ended, one of `apl_guard.metrics.RESULTS`. None stands for what the error says.

    Raises:
        AuditUnavailable: The record is not durable.
    """
    if result is None:
        result = "invalid"
        if isinstance(error, GuardUnavailable):
            result = "failed"
        elif isinstance(error, BackendFailed):  # it was asked something to read the arguments
            result = "backend_error"
    try:
        with watch.recording(parts.audit.sink):
            parts.audit.refusal(new_id(), parts.backend.name, policy, result, type(error).__name__)
    except Exception as unwritten:
        watch.ended("failed", policy, unwritten)
        raise unavailable(unwritten) from error
    watch.ended(result, policy, error)


def unavailable(error: Exception) -> AplGuardError:
    """An error of the guard's own work, as one that says there is no image."""
    if isinstance(error, AplGuardError):
        return error
    return GuardUnavailable(f"the guard failed ({type(error).__name__}), so there is no image")
