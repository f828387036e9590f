"""One call on its way through the guard: decided, recorded, carried out, checked, recorded again."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from apl_guard.acceptance import Acceptance
from apl_guard.audit import AuditLog, Outcome
from apl_guard.backend import Backend, Generation
from apl_guard.context import current_context
from apl_guard.decision import Decision, Reason
from apl_guard.errors import AplGuardError, GuardUnavailable, PolicyBlocked, PrefixNotApplied
from apl_guard.fit import Fit
from apl_guard.in_force import PolicyInForce
from apl_guard.metrics import Metrics
from apl_guard.policy import Action, OnError, Policy
from apl_guard.prefix import Prefix
from apl_guard.request import TEXT_CHANNELS, Channel, GenerationRequest

__all__ = ["Call", "Guarded", "refuse"]

_log = logging.getLogger("apl_guard")


@dataclass(frozen=True)
class Guarded:
    """What a guarded call gave, with its records."""

    output: Any
    """What the pipe returned, in the pipe's own type."""
    decision: Decision
    outcome: Outcome


class Call:
    """One call on its way through the guard.

    Args:
        request: What was asked.
        backend: The adapter that read it.
        in_force: What decides about it.
        audit: Where decision and outcome are recorded.
        metrics: Where they are counted.
        find_prefix: Finds the prefix for the text encoders that are in the pipe now, by name or None, under
            what the policy accepts.
        started: Reading of `perf_counter` when the call began.
    """

    def __init__(
        self,
        request: GenerationRequest,
        backend: Backend,
        in_force: PolicyInForce,
        audit: AuditLog,
        metrics: Metrics,
        find_prefix: Callable[[str | None, Acceptance], Fit],
        started: float,
    ) -> None:
        self._request = request
        self._backend = backend
        self._in_force = in_force
        self._audit = audit
        self._metrics = metrics
        self._find_prefix = find_prefix
        self._started = started
        self._generation_seconds: float | None = None
        self._fit: Fit | None = None
        self._prefix: Prefix | None = None
        self._in_front: Prefix | None = None
        """As much of the prefix as the policy asks for."""
        self._generation: Generation | None = None
        self._unprotected: Exception | None = None
        """Why there is no prefix, where the policy lets requests pass without."""

    def run(self) -> Guarded:
        """Decide, act, record.

        Raises:
            PolicyBlocked: The policy decided against the request.
            GuardUnavailable: The guard could not do its work.
            Exception: Whatever the pipe raises, unchanged.
        """
        try:
            self._decision = self._in_force.decide(self._request, current_context())
            self._audit.decision(self._decision, self._request)
            self._metrics.decided(self._decision)
            self._warn(self._decision)
        except Exception as error:
            self._count("failed")
            raise _unavailable(error) from error
        if self._decision.effective == Action.BLOCK:
            self._end("blocked")
            raise PolicyBlocked(_explain(self._decision), decision=self._decision)
        try:
            if self._decision.prefixed:
                self._take_prefix(self._decision)
            self._request = self._request.saying(self._decision.texts)
        except Exception as error:
            self._end("failed", error)
            raise _unavailable(error) from error
        self._generation = generation = self._generate()
        if self._prefix is not None and self._in_front is not None:
            self._check_receipt(self._in_front, generation)
            self._metrics.used(self._prefix)
        return Guarded(generation.output, self._decision, self._end("passed"))

    def _take_prefix(self, decision: Decision) -> None:
        """Find the prefix, or go on without where the policy says so in so many words."""
        try:
            self._fit = self._find_prefix(decision.prefix, self._in_force.policy.spec.prefix)
        except Exception as error:
            if self._in_force.policy.spec.on_error != OnError.PASSTHROUGH:
                raise
            self._unprotected = error
            what = f"on_error: {OnError.PASSTHROUGH.value} ({type(error).__name__})"
            _log.warning("policy '%s' switches protection off: %s (decision %s)", decision.policy, what, decision.id)
            return
        self._prefix = self._fit.prefix
        self._in_front = self._prefix.first(decision.rows(self._prefix.n))

    def _warn(self, decision: Decision) -> None:
        """Say each time that protection was switched off."""
        for what in decision.unsafe:
            _log.warning("policy '%s' switches protection off: %s (decision %s)", decision.policy, what, decision.id)

    def _generate(self) -> Generation:
        began = perf_counter()
        result = "backend_error"
        try:
            return self._backend.generate(self._request, self._in_front)
        except BaseException as error:
            self._generation_seconds = perf_counter() - began
            if isinstance(error, AplGuardError):
                result = "failed"
            self._end(result, error)
            raise
        finally:
            self._generation_seconds = perf_counter() - began

    def _check_receipt(self, prefix: Prefix, generation: Generation) -> None:
        """Believe that the prefix was in front of every prompt only where every text encoder saw it."""
        expected = (prefix.n,) * len(self._request.prompts)
        for slot in prefix.metadata.widths:
            received = generation.receipt.prefix_rows.get(slot, ())
            if received != expected:
                error = PrefixNotApplied(
                    f"{slot} received {list(received)} prefix vectors, expected {list(expected)}, one number "
                    "for each prompt; something replaced the text encoder or its tokenizer during the call"
                )
                self._end("failed", error)
                raise error

    def _end(self, result: str, error: BaseException | None = None) -> Outcome:
        """Record how the call ended. Nothing is released if that fails."""
        now = perf_counter()
        generation, prefix = self._generation, self._prefix
        outcome = Outcome(
            id=self._decision.id,
            result=result,
            effective=(Action.ALLOW if self._unprotected is not None else self._decision.effective).value,
            images=generation.images if generation is not None and result == "passed" else 0,
            prefix=prefix.metadata.name if prefix is not None else None,
            prefix_digest=prefix.digest if prefix is not None else None,
            prefix_match=self._fit.tier.value if self._fit is not None else None,
            prefix_rows=dict(generation.receipt.prefix_rows) if generation is not None else {},
            tokens_cut=dict(generation.receipt.tokens_cut) if generation is not None else {},
            error=type(error or self._unprotected).__name__ if error or self._unprotected else None,
            overhead_ms=round(1000 * (now - self._started - (self._generation_seconds or 0)), 3),
            generation_ms=_milliseconds(self._generation_seconds),
        )
        try:
            self._audit.outcome(outcome)
        except Exception as unwritten:
            self._count("failed")
            raise _unavailable(unwritten) from (error or unwritten)
        self._count(result)
        return outcome

    def _count(self, result: str) -> None:
        generation = self._generation_seconds
        overhead = perf_counter() - self._started - (generation or 0)
        self._metrics.ended(result, overhead=overhead, generation=generation)


def refuse(
    error: Exception, backend: Backend, policy: Policy, audit: AuditLog, metrics: Metrics, started: float
) -> None:
    """Record and count a call whose arguments the adapter could not read.

    Args:
        error: What the adapter raised.
        backend: The adapter.
        policy: The policy in force.
        audit: Where it is recorded.
        metrics: Where it is counted.
        started: Reading of `perf_counter` when the call began.

    Raises:
        AuditUnavailable: The record is not durable.
    """
    result = "failed" if isinstance(error, GuardUnavailable) else "invalid"
    try:
        audit.refusal(uuid.uuid4().hex, backend.name, policy, result, type(error).__name__)
    except Exception as unwritten:
        metrics.ended("failed", overhead=perf_counter() - started, generation=None)
        raise _unavailable(unwritten) from error
    metrics.ended(result, overhead=perf_counter() - started, generation=None)


def _unavailable(error: Exception) -> AplGuardError:
    """An error of the guard's own work, as one that says there is no image."""
    if isinstance(error, AplGuardError):
        return error
    return GuardUnavailable(f"the guard failed ({type(error).__name__}), so there is no image")


def _explain(decision: Decision) -> str:
    """Say what was blocked, and which line of the policy would permit it."""
    parts = [_explain_reason(reason) for reason in decision.reasons if reason.action == Action.BLOCK]
    return f"policy '{decision.policy}' blocks this request: {'; '.join(parts)}"


def _explain_reason(reason: Reason) -> str:
    channel = reason.channel
    if channel not in list(Channel):
        return f"argument '{channel}' is unknown to this version of apl-guard"
    text = f"channel '{channel}' is blocked"
    text += f" by rule '{reason.rule}'" if reason.rule is not None else ""
    text += f" (category {reason.category})" if reason.category is not None else ""
    text += f": {reason.why}" if reason.why else ""
    if channel in TEXT_CHANNELS:
        return text
    return (
        f"{text}; a prefix cannot protect it, a rule with `when: {{channels: [{channel}]}}` and "
        "`then: {action: unsafe_allow}` would permit it"
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
