"""Which rules of a policy apply to a request, condition by condition, and what they ask for.

`judge` says of every rule whether it applies and why; `demands` says what follows for each channel. A decision is
made from the second, an explanation shown from the first, so the two cannot differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from apl_guard.decision.findings import Finding, Findings
from apl_guard.policy import Action, OnError, Policy, Rule, Share, ShareKey, Verb, WithoutPrefix
from apl_guard.request import PROMPT_CHANNELS, Channel, GenerationRequest
from apl_guard.request.context import Context

__all__ = ["NO_RULE", "Condition", "Demand", "Verdict", "belongs", "demands", "judge"]

NO_RULE = "no rule applies"
"""Why a channel is blocked about which the policy says nothing."""


@dataclass(frozen=True)
class Condition:
    """One condition of a rule, held against a request."""

    text: str
    """The condition in words."""
    holds: bool | None
    """None where what would have to look at the text did not."""


@dataclass(frozen=True)
class Verdict:
    """Whether a rule applies to one channel of a request."""

    rule: Rule
    channel: Channel
    conditions: tuple[Condition, ...]
    found: tuple[Finding, ...] = ()
    """What its conditions found in the channel."""
    missing: tuple[str, ...] = ()
    """Sources that it asks and that did not look."""

    @property
    def applies(self) -> bool | None:
        """None where that cannot be known."""
        held = [condition.holds for condition in self.conditions]
        return False if False in held else None if None in held else True


@dataclass(frozen=True)
class Demand:
    """What one rule asks for one channel, or what follows where no rule does."""

    action: Action
    rule: Rule | None = None
    why: str = ""
    """What asks, where no rule does."""
    found: tuple[Finding, ...] = ()
    """What `rewrite` replaces."""
    unsafe: str = ""
    """What of the policy switches protection off here, as it is spelt there."""
    failed: bool = False
    """Whether it is asked for only because something could not look."""

    @property
    def order(self) -> tuple[int, bool, str, bool, str]:
        """Demands in the order from lenient to strict. It does not depend on the order of rules in the file.

        Of equals, what a rule asks for itself comes last: no failure, and nothing that follows from one or from the
        backend, hides that a rule blocks.
        """
        id = self.rule.id if self.rule is not None else ""
        return self.action.strictness, not self.failed, self.unsafe, not self.why, id


def judge(policy: Policy, request: GenerationRequest, context: Context, findings: Findings) -> tuple[Verdict, ...]:
    """Hold every rule against every channel that it names and the request uses."""
    verdicts = []
    seen: dict[Channel, list[Finding]] = {}
    for finding in findings.found:
        seen.setdefault(finding.channel, []).append(finding)
    for rule in policy.rules:
        channels = [channel for channel in rule.when.channels if channel in request.used]
        if channels:
            about_request = _about_request(rule, request, context)
            verdicts += [_judge(rule, c, about_request, findings, seen.get(c, ())) for c in channels]
    return tuple(verdicts)


def _about_request(rule: Rule, request: GenerationRequest, context: Context) -> tuple[Condition, ...]:
    """The conditions that hold for all channels or for none."""
    when = rule.when
    conditions = []
    for name, globs, value in (
        ("model", when.models, request.backend),
        ("tenant", when.tenants, context.tenant),
        ("route", when.routes, context.route),
    ):
        if globs is not None:
            holds = any(_fits(value or "", glob) for glob in globs)
            conditions.append(Condition(f"{name} {value or '(none)'} is one of {', '.join(globs)}", holds))
    if when.share is not None:
        holds = belongs(when.share, request, context)
        conditions.append(Condition(f"in the share of {when.share.percent:g} % by {when.share.key.value}", holds))
    return tuple(conditions)


def _fits(value: str, glob: str) -> bool:
    """Whether a name is what a glob says. Only `*` stands for anything: a tenant may be called `lab[1]`."""
    return fnmatchcase(value, glob.replace("[", "[[]").replace("?", "[?]"))


def _judge(
    rule: Rule,
    channel: Channel,
    about_request: tuple[Condition, ...],
    findings: Findings,
    in_channel: Sequence[Finding],
) -> Verdict:
    when = rule.when
    conditions = [Condition(f"{channel.value} is used", True), *about_request]
    found: list[Finding] = []
    missing: list[str] = []
    for sources, least in when.asks:
        here = [f for f in in_channel if f.source in sources and f.score >= least]
        absent = [source for source in sources if source not in findings.looked]
        found += here
        missing += absent
        holds = True if here else None if absent else False
        what = " or ".join(sources) + (f" at {least:g} or more" if least else "")
        conditions.append(Condition(f"{what} found in {channel.value}", holds))
    return Verdict(rule, channel, tuple(conditions), tuple(found), tuple(missing))


def demands(
    policy: Policy, request: GenerationRequest, findings: Findings, verdicts: Iterable[Verdict]
) -> dict[str, list[Demand]]:
    """What is asked for each channel that the request uses, and for each argument that no channel is known for."""
    asked: dict[str, list[Demand]] = {channel.value: [] for channel in sorted(request.used)}
    failed: dict[str, list[Demand]] = {}
    for verdict in verdicts:
        if verdict.applies:
            asked[verdict.channel.value].append(_of_rule(verdict))
        elif verdict.applies is None:
            failed.setdefault(verdict.channel.value, []).append(_on_error(policy, verdict))
    for channel, found in asked.items():
        if not found:
            found.append(Demand(Action.BLOCK, why=NO_RULE))
        found += failed.get(channel, [])
        if not request.carries_prefix:
            found[:] = [_without_prefix(policy, channel, demand, findings) for demand in found]
    for name in sorted(request.unknown):
        asked[name] = [Demand(Action.BLOCK, why="unknown argument")]
    for channel, texts in request.text.items():
        if fault := policy.spec.limits.fault(texts):
            asked[channel.value] = [Demand(Action.BLOCK, why=fault)]
    return asked


def _of_rule(verdict: Verdict) -> Demand:
    rule, verb = verdict.rule, verdict.rule.then.action
    unsafe = f"rule '{rule.id}': {verb.value} {verdict.channel.value}" if verb == Verb.UNSAFE_ALLOW else ""
    return Demand(verb.action, rule, found=verdict.found, unsafe=unsafe)


def _on_error(policy: Policy, verdict: Verdict) -> Demand:
    """What follows from a rule of which nobody knows whether it applies."""
    why = f"{', '.join(verdict.missing)} did not look; on_error"
    if policy.spec.on_error == OnError.PASSTHROUGH:
        unsafe = f"on_error: {OnError.PASSTHROUGH.value}"
        return Demand(Action.ALLOW, why=f"{why}: {OnError.PASSTHROUGH.value}", unsafe=unsafe)
    if policy.spec.on_error == OnError.FALLBACK and verdict.channel in PROMPT_CHANNELS:
        return Demand(Action.ANONYMIZE, why=f"{why}: {OnError.FALLBACK.value}")
    only = f"{OnError.FALLBACK.value} is for prompts alone" if policy.spec.on_error == OnError.FALLBACK else "block"
    return Demand(Action.BLOCK, why=f"{why}: {only}", failed=True)


def _without_prefix(policy: Policy, channel: str, demand: Demand, findings: Findings) -> Demand:
    """What becomes of a demand where no prefix can reach the backend."""
    if demand.action != Action.ANONYMIZE:
        return demand
    why = "no prefix can reach this backend; without_prefix"
    if policy.spec.without_prefix == WithoutPrefix.BLOCK:
        return Demand(Action.BLOCK, demand.rule, f"{why}: {WithoutPrefix.BLOCK.value}")
    why = f"{why}: {WithoutPrefix.REWRITE.value}"
    if missing := policy.spec.sources - findings.looked:
        why = f"{why}, but {', '.join(sorted(missing))} did not look"
        return Demand(Action.BLOCK, demand.rule, why, failed=True)
    found = tuple(finding for finding in findings.found if finding.channel == channel)
    return Demand(Action.REWRITE, demand.rule, why, found)


def belongs(share: Share, request: GenerationRequest, context: Context) -> bool:
    """Whether a request belongs to a share."""
    key = {
        ShareKey.REQUEST: request.id,
        ShareKey.TENANT: context.tenant or "",
        ShareKey.PROMPT: "\0".join(request.prompts),
    }[share.key]
    digest = hashlib.sha256(f"{share.salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    # The first 53 bits, which a float holds exactly.
    return (int.from_bytes(digest[:8]) >> 11) / (1 << 53) < share.percent / 100
