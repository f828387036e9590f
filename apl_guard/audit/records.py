"""The fields of the two records."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from apl_guard._version import __version__
from apl_guard.decision import Decision
from apl_guard.request import GenerationRequest

__all__ = ["Outcome", "decision_record", "outcome_record"]

_SCHEMA_VERSION = 1


class Outcome(BaseModel):
    """What was really done for one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The same as the decision's."""
    result: str
    """One of `apl_guard.metrics.RESULTS`."""
    effective: str
    """What was done to the prompts that led to this result: allow, anonymize or block."""
    images: int = 0
    prefix: str | None = None
    """Name of the prefix that was used."""
    prefix_digest: str | None = None
    prefix_rows: Mapping[str, tuple[int, ...]] = {}
    """Slot → for each prompt, how many prefix vectors the text encoder received in front of it."""
    tokens_cut: Mapping[str, tuple[int, ...]] = {}
    """Slot → for each prompt, how many of its tokens did not fit."""
    error: str | None = None
    """Type of the error. Its message is left out, for it may hold a prompt."""
    overhead_ms: float
    generation_ms: float | None = None


def decision_record(decision: Decision, request: GenerationRequest, key: bytes) -> dict[str, Any]:
    """The fields of a decision record.

    Args:
        decision: What was decided.
        request: What was asked.
        key: Key of the digests.
    """
    return {
        "schema_version": _SCHEMA_VERSION,
        "apl_guard_version": __version__,
        "decision_id": decision.id,
        "backend": request.backend,
        "carries_prefix": request.carries_prefix,
        "policy": {
            "name": decision.policy,
            "version": decision.policy_version,
            "digest": decision.policy_digest,
            "mode": decision.mode.value,
            "in_rollout": decision.in_rollout,
        },
        "tenant": decision.tenant,
        "route": decision.route,
        "action": decision.action.value,
        "effective_action": decision.effective.value,
        "prefixed": decision.prefixed,
        "strength": decision.strength,
        "category": decision.category,
        "reasons": [reason.model_dump(mode="json") for reason in decision.reasons],
        "findings": [finding.model_dump(mode="json") for finding in decision.findings],
        "looked": list(decision.looked),
        "failed": dict(decision.failed),
        "unsafe": list(decision.unsafe),
        "channels": sorted(channel.value for channel in request.used),
        "unknown": sorted(request.unknown),
        "text": {
            channel.value: [{"hmac": _digest(key, text), "chars": len(text)} for text in found]
            for channel, found in sorted(request.text.items())
        },
        "key_id": hashlib.sha256(key).hexdigest()[:16],
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """The fields of an outcome record."""
    fields = outcome.model_dump(mode="json")
    return {"schema_version": _SCHEMA_VERSION, "decision_id": fields.pop("id"), **fields}


def _digest(key: bytes, text: str) -> str:
    # A prompt may hold lone surrogates; it must not be able to stop the record.
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
