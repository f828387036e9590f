"""Whether a prefix fits the text encoders of a pipe, and what to say where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.encoder.traits import Likeness, Tier
from apl_guard.errors import PrefixNotFound
from apl_guard.policy.acceptance import Acceptance, Match
from apl_guard.prefix import Prefix, PrefixMetadata

if TYPE_CHECKING:
    from apl_guard.backend import Backend
    from apl_guard.registry.entry import RegistryEntry

__all__ = ["Fit", "fit", "nothing_for"]

_TRAIN = "train one for it with: apl-guard train --model MODEL --identities people.yaml --output PREFIX"


@dataclass(frozen=True)
class Fit:
    """A prefix that may be put in front, and how well it fits."""

    prefix: Prefix
    tier: Tier
    """That of the slot that fits worst."""
    why: str


def misfit(metadata: PrefixMetadata, fingerprints: Mapping[str, Fingerprint], acceptance: Acceptance) -> str | None:
    """What speaks against a prefix, whatever the encoders are: slots that one has and the other lacks."""
    has, carries = set(metadata.widths), set(fingerprints)
    if lacking := acceptance.lacking(has, carries):
        return (
            f"has no vectors for {_listed(lacking)}, which the prompt goes through as well; if the others suffice, "
            f"list them in the policy: `spec: {{prefix: {{slots: {_listed(has & carries)}}}}}`"
        )
    if extra := has - carries:
        return f"has vectors for {_listed(extra)}, which this pipe has not; load the pipe with them, or {_TRAIN}"
    return None


def fit(prefix: Prefix, fingerprints: Mapping[str, Fingerprint], backend: Backend, acceptance: Acceptance) -> Fit:
    """Make sure that a prefix fits the text encoders that are in the pipe now.

    Args:
        prefix: The prefix.
        fingerprints: Slot → fingerprint of the text encoder that is in the pipe now.
        backend: Is asked to compare where fingerprints differ and the policy accepts what is compatible.
        acceptance: How close is close enough.

    Raises:
        PrefixNotFound: It does not fit. The message says why, and what would have to change.
    """
    metadata = prefix.metadata
    if problem := misfit(metadata, fingerprints, acceptance):
        near = any(made_for == fingerprints.get(slot) for slot, made_for in metadata.fingerprints.items())
        raise PrefixNotFound(f"prefix '{metadata.name}' {problem}", fingerprint=_first(fingerprints), near=near)
    # A projection is no part of a fingerprint, because many pipelines do not use theirs.
    asked = {
        slot
        for slot, made_for in metadata.fingerprints.items()
        if fingerprints[slot] != made_for or (metadata.traits and metadata.traits[slot].projection)
    }
    if not asked:
        return Fit(prefix, Tier.EXACT, "equal weights and tokenizer")
    nothing = Likeness(Tier.UNKNOWN, "another fingerprint, and the prefix holds nothing else to compare by")
    likeness = backend.likeness(prefix) if metadata.traits else {}
    found = {slot: likeness.get(slot, nothing) for slot in sorted(asked)}
    slot = max(found, key=lambda slot: list(Tier).index(found[slot].tier))
    worst = found[slot]
    if worst.tier == Tier.EXACT:
        return Fit(prefix, worst.tier, worst.why)
    differs = (
        f"prefix '{metadata.name}' was made for {metadata.fingerprints[slot].key}, but {slot} of this pipe is "
        f"{fingerprints[slot].key}"
    )
    if worst.tier != Tier.COMPATIBLE:
        raise PrefixNotFound(f"{differs} ({worst.why}); {_TRAIN}", fingerprint=fingerprints[slot])
    if acceptance.match != Match.COMPATIBLE:
        raise PrefixNotFound(
            f"{differs}, which is compatible ({worst.why}); the policy asks for an exact match, and would accept this "
            "one with `spec: {prefix: {match: compatible}}`",
            fingerprint=fingerprints[slot],
            near=True,
        )
    return Fit(prefix, worst.tier, f"{slot}: {worst.why}")


def nothing_for(
    fingerprints: Mapping[str, Fingerprint], entries: Sequence[RegistryEntry], registry: object
) -> PrefixNotFound:
    """The error that says which text encoders no prefix is there for, where that was looked up, and how to make one."""
    damaged = sum(entry.prefix is None for entry in entries)
    note = f" ({damaged} damaged: see `apl-guard prefix list`)" if damaged else ""
    looked_for = ", ".join(f"{slot} {found.key}" for slot, found in sorted(fingerprints.items()))
    return PrefixNotFound(
        f"no prefix for {looked_for} among the {len(entries)} known{note}, of {registry} and the package; make one "
        "with: apl-guard train --model MODEL --identities people.yaml --output PREFIX && "
        "apl-guard prefix register PREFIX",
        fingerprint=_first(fingerprints),
    )


def _listed(slots: set[str]) -> str:
    return "[" + ", ".join(sorted(slots)) + "]"


def _first(fingerprints: Mapping[str, Fingerprint]) -> Fingerprint | None:
    return next(iter(fingerprints.values()), None)
