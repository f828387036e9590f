"""The fields of the records: what was decided, what was done, what was refused before anything could be decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from apl_guard._version import __version__
from apl_guard.audit.keyed_digests import digest, key_id, normal_digest
from apl_guard.decision import Decision, Protection, Reason
from apl_guard.policy import Policy
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context

if TYPE_CHECKING:
    from apl_guard.backend import Backend
    from apl_guard.registry.fit import Fit

__all__ = [
    "Outcome",
    "brief",
    "decision_record",
    "leak_drawing_record",
    "leak_record",
    "outcome_record",
    "policy_record",
    "refusal_record",
]

_SCHEMA_VERSION = 2
_MAX_TEXTS = 64
_MAX_NAME = 64
_MAX_FINDINGS = 100
_MAX_REASONS = 100


class Outcome(BaseModel):
    """What was really done for one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The same as the decision's."""
    result: str
    """One of `apl_guard.metrics.RESULTS`."""
    effective: str
    """What was done to the prompts that led to this result: allow, anonymize, rewrite or block."""
    images: int = 0
    """How many were released."""
    image_sha256: tuple[str, ...] | None = None
    """A digest of the pixels of each, see `apl_guard.audit.images`; None where none was released, or what was
    are no finished pictures."""
    protection: Protection | None = None
    """Whether what the policy asks for was done for them; None where none was released."""
    prefix: str | None = None
    """Name of the prefix that was used."""
    prefix_digest: str | None = None
    prefix_match: str | None = None
    """How close the text encoder is to the one of the prefix; see `apl_guard.encoder.traits.Tier`."""
    prefix_rows: Mapping[str, tuple[int, ...]] = {}
    """Slot → for each prompt, how many prefix vectors the text encoder received in front of it."""
    tokens_cut: Mapping[str, tuple[int, ...]] = {}
    """Slot → for each prompt, how many of its tokens did not fit."""
    change: Mapping[str, tuple[float, ...]] = {}
    """Slot → for each prompt, how far the prefix moved what the text encoder gave, relative to its size."""
    slots_without_prefix: tuple[str, ...] = ()
    """Text encoders that got the prompts without a prefix, as the policy permits."""
    output_check: Mapping[str, Any] | None = None
    """What the output check saw, or how it failed; None where there was none. Never who was seen."""
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
        "rules": " ".join(decision.rules) or None,
        "reasons": [_short(reason.__dict__) for reason in _first(decision.reasons)],
        "reasons_count": len(decision.reasons),
        # A prompt can be made of names; the record stays short.
        "findings": [finding.model_dump(mode="json") for finding in decision.findings[:_MAX_FINDINGS]],
        "findings_count": len(decision.findings),
        "looked": list(decision.looked),
        "failed": dict(decision.failed),
        "unsafe": list(decision.unsafe),
        "channels": sorted(channel.value for channel in request.used),
        "unknown": sorted(name[:_MAX_NAME] for name in request.unknown)[:_MAX_TEXTS],
        "text": {channel.value: _texts(key, found) for channel, found in sorted(request.text.items())},
        "key_id": key_id(key),
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """The fields of an outcome record."""
    fields = {**outcome.__dict__}
    fields["prefix_rows"] = {slot: list(rows) for slot, rows in outcome.prefix_rows.items()}
    # A text encoder that overflows changes by no number, which is why the call failed; JSON has no word for it.
    fields["change"] = {slot: [c if isfinite(c) else None for c in found] for slot, found in outcome.change.items()}
    fields["image_sha256"] = None if outcome.image_sha256 is None else list(outcome.image_sha256)
    fields["protection"] = None if outcome.protection is None else outcome.protection.value
    fields["tokens_cut"] = {slot: list(cut) for slot, cut in outcome.tokens_cut.items()}
    return {"schema_version": _SCHEMA_VERSION, "decision_id": fields.pop("id"), **fields}


def refusal_record(
    decision_id: str, backend: str, policy: Policy, result: str, error: str, context: Context
) -> dict[str, Any]:
    """The fields of the record of a call whose arguments could not be read, so that nothing was decided."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "apl_guard_version": __version__,
        "decision_id": decision_id,
        "backend": backend,
        "policy": brief(policy),
        "tenant": context.tenant,
        "route": context.route,
        "result": result,
        "error": error,
    }


def leak_drawing_record(decision_id: str, pictures: int) -> dict[str, Any]:
    """The fields of the record of a call whose prompt is drawn again without protection now."""
    return {"schema_version": _SCHEMA_VERSION, "decision_id": decision_id, "pictures": pictures}


def leak_record(
    decision_id: str, seen: Iterable[str], highest: float | None, recogniser: str, threshold: float
) -> dict[str, Any]:
    """The fields of the record of a call whose prompt was drawn again without protection, and compared."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "decision_id": decision_id,
        "seen": [str(each) for each in seen],
        "highest": None if highest is None else round(highest, 6),
        "recogniser": recogniser,
        "threshold": threshold,
    }


def policy_record(
    guard: str,
    backend: Backend,
    policy: Policy,
    prefixes: Iterable[Fit] = (),
    models: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The fields of a record about the policy of a guard.

    Args:
        guard: The id of the guard. A process may have several.
        backend: Its adapter.
        policy: The policy that is in force after this record.
        prefixes: What was found for the prefixes that the policy asks for.
        models: Source → SHA-256 of the weights of the detector behind it.
        more: Further fields.
    """
    rollout = policy.spec.rollout
    return {
        "schema_version": _SCHEMA_VERSION,
        "apl_guard_version": __version__,
        "guard": guard,
        "backend": backend.name,
        "carries_prefix": backend.carries_prefix,
        "policy": {
            **brief(policy),
            "rollout_percent": None if rollout is None else rollout.percent,
            "owner": policy.metadata.owner,
            "description": policy.metadata.description,
        },
        "prefixes": [
            {"name": fit.prefix.metadata.name, "digest": fit.prefix.digest, "match": fit.tier.value} for fit in prefixes
        ],
        "models": dict(models or {}),
        **more,
    }


def brief(policy: Policy) -> dict[str, Any]:
    """What tells a policy apart from every other."""
    return {
        "name": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "mode": policy.mode.value,
    }


def _texts(key: bytes, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Two digests of each text: as it came, and of its canonical form without case.

    The second counts an attack that is tried again and again with small changes. Of a large batch, what goes
    beyond the first texts is under one digest.
    """
    found: list[dict[str, Any]] = [
        {
            "hmac": digest(key, text),
            "norm_hmac": normal_digest(key, text),
            "chars": len(text),
        }
        for text in texts[:_MAX_TEXTS]
    ]
    if rest := texts[_MAX_TEXTS:]:
        chars, longest = sum(map(len, rest)), max(map(len, rest))
        found.append({"hmac": digest(key, "\0".join(rest)), "chars": chars, "longest": longest, "texts": len(rest)})
    return found


def _first(reasons: tuple[Reason, ...]) -> list[Reason]:
    """Those of channels, then as many as fit of arguments that nobody knows, of which a caller can send any number."""
    return sorted(reasons, key=lambda reason: reason.channel not in _CHANNELS)[:_MAX_REASONS]


_CHANNELS = frozenset(channel.value for channel in Channel)


def _short(reason: Mapping[str, Any]) -> dict[str, Any]:
    # The name of an unknown argument is chosen by the caller.
    return {name: value[:_MAX_NAME] if isinstance(value, str) else value for name, value in reason.items()}
