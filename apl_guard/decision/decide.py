"""What a policy says about one request. Pure: no file, no clock, no model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.decision.findings import Finding, Findings
from apl_guard.decision.rules import Demand, belongs, demands, judge
from apl_guard.policy import Action, Mode, Policy, Share, ShareKey
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context

__all__ = ["Decision", "Reason", "decide"]


class Reason(BaseModel):
    """What decided about one channel, or about one argument that no channel is known for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str
    rule: str | None
    """The id of the rule; None where something else than a rule decided."""
    action: Action
    why: str = ""
    """What decided where no rule did, or not the rule alone."""
    category: str | None = None
    """What the rule calls what it blocks."""
    failed: bool = False
    """Whether it is blocked only because something could not look."""


class Decision(BaseModel):
    """What was decided for one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The same as the request's; it joins decision, outcome and whatever else is recorded."""
    policy: str
    policy_version: int
    policy_digest: str
    mode: Mode
    in_rollout: bool = True
    """Whether the request belongs to the part for which decisions are carried out."""
    tenant: str | None = None
    route: str | None = None
    action: Action
    """What the rules say."""
    effective: Action
    """What is done: the same in mode `enforce` within the rollout, else `allow`."""
    prefixed: bool
    """Whether the prefix goes in front of the prompts. True with `rewrite` too, where a rule asks for both."""
    prefix: str | None = None
    """Name of the registered prefix; None for the one that fits."""
    strength: float = 1.0
    """How much of the prefix, in (0, 1]."""
    category: str | None = None
    """What the rule that blocks calls it."""
    reasons: tuple[Reason, ...]
    findings: tuple[Finding, ...] = ()
    looked: tuple[str, ...] = ()
    """The sources that looked at the texts."""
    failed: Mapping[str, str] = {}
    """Source → type of the error, of those that could not."""
    unsafe: tuple[str, ...] = ()
    """What switched protection off for this request, as the policy spells it."""
    would_run: Mapping[Channel, tuple[str, ...]] = Field(default={}, repr=False, exclude=True)
    """Text channel → the texts that the rules want to run in place of the request's."""

    would_stay: Mapping[str, int] = Field(default={}, repr=False, exclude=True)
    """Source of what these texts replace → how many of its findings they leave, in channels where no rule replaces."""

    @property
    def texts(self) -> Mapping[Channel, tuple[str, ...]]:
        """Text channel → the texts that run in place of the request's. Those of other channels run as they are."""
        is_done = self.mode == Mode.ENFORCE and self.in_rollout
        return self.would_run if is_done else {}

    @property
    def rules(self) -> tuple[str, ...]:
        """The ids of the rules that led to the action, sorted; none where no rule did."""
        return tuple(sorted({r.rule for r in self.reasons if r.action == self.action and r.rule is not None}))

    @property
    def is_blind(self) -> bool:
        """Whether there is no image only because something could not look: no judgement, but a failure."""
        blocking = [reason for reason in self.reasons if reason.action == Action.BLOCK]
        return self.effective == Action.BLOCK and all(reason.failed for reason in blocking)

    def rows(self, n: int) -> int:
        """How many of N prefix vectors go in front of each prompt."""
        return max(1, math.ceil(self.strength * n - 1e-9))


def decide(
    policy: Policy, request: GenerationRequest, context: Context | None = None, findings: Findings | None = None
) -> Decision:
    """Apply a policy to a request. The strictest of the channels' actions is the request's.

    Args:
        policy: The policy.
        request: The request, as an adapter read it.
        context: The tenant and route of the call.
        findings: What detectors saw in its texts. A detector that a rule asks and that did not look counts as
            failed.

    Returns:
        The decision. An argument that the adapter does not know is blocked whatever the policy says.

    Example:
        >>> prompt = Channel.PROMPT
        >>> request = GenerationRequest("demo:Pipe", {prompt: ("a cat",)}, frozenset({prompt}))
        >>> decide(Policy.load("anonymize_faces"), request).action.value
        'anonymize'
    """
    context = context or Context()
    findings = findings or Findings()
    asked: dict[str, list[Demand]] = {}
    if policy.mode != Mode.OFF:
        asked = demands(policy, request, findings, judge(policy, request, context, findings))
    reasons = tuple(_strictest(channel, found) for channel, found in sorted(asked.items()))
    action = max((reason.action for reason in reasons), key=lambda a: a.strictness, default=Action.ALLOW)
    rollout = policy.spec.rollout
    in_rollout = rollout is None or _is_in(rollout, request, context)
    is_done = policy.mode == Mode.ENFORCE and in_rollout
    runs = is_done and action != Action.BLOCK
    prefixes = [d for found in asked.values() for d in found if d.action == Action.ANONYMIZE] if runs else []
    prefix, strength = _which(prefixes)
    is_run = action != Action.BLOCK and bool(asked)
    replaced = _replaced(asked) if is_run else {}
    return Decision(
        id=request.id,
        policy=policy.name,
        policy_version=policy.version,
        policy_digest=policy.digest,
        mode=policy.mode,
        in_rollout=in_rollout,
        tenant=context.tenant,
        route=context.route,
        action=action,
        effective=action if is_done else Action.ALLOW,
        prefixed=bool(prefixes),
        prefix=prefix,
        strength=strength,
        category=next((r.category for r in reasons if r.category), None),
        reasons=reasons,
        findings=findings.found,
        looked=tuple(sorted(findings.looked)),
        failed=dict(findings.failed),
        unsafe=_unsafe(policy, reasons, asked),
        would_run=_texts(findings, replaced) if is_run else {},
        would_stay=_stay(findings, replaced),
    )


def _is_in(rollout: Share, request: GenerationRequest, context: Context) -> bool:
    # A caller that does not say for whom it calls cannot get out of a rollout by tenants that way.
    return (rollout.key == ShareKey.TENANT and context.tenant is None) or belongs(rollout, request, context)


def _strictest(channel: str, found: list[Demand]) -> Reason:
    demand = max(found, key=lambda d: d.order)
    rule = demand.rule
    return Reason(
        channel=channel,
        rule=None if rule is None else rule.id,
        action=demand.action,
        why=demand.why,
        category=None if rule is None else rule.then.category,
        failed=demand.failed,
    )


def _which(found: list[Demand]) -> tuple[str | None, float]:
    """Which prefix, and how much of it: the greatest strength asked for; of equals, that of the first rule by id."""
    asked: list[tuple[str | None, float]] = [(None, 1.0)] if not found else []
    for demand in sorted(found, key=lambda d: d.order):
        then = demand.rule.then if demand.rule is not None else None
        strength = 1.0 if then is None or then.strength is None else then.strength
        asked.append((then.prefix if then is not None else None, strength))
    return max(asked, key=lambda each: each[1])


def _unsafe(policy: Policy, reasons: tuple[Reason, ...], asked: Mapping[str, list[Demand]]) -> tuple[str, ...]:
    """What switched protection off, as the policy spells it."""
    if policy.mode == Mode.OFF:
        return (f"mode: {Mode.OFF.value}",)
    strictest = {reason.channel: reason.action for reason in reasons}
    return tuple(
        sorted(
            {
                demand.unsafe
                for channel, found in asked.items()
                for demand in found
                # Beside a stricter rule, a permission does nothing.
                if demand.unsafe and (demand.rule is None or strictest[channel] == Action.ALLOW)
            }
        )
    )


_Replaced = Mapping[tuple[Channel, int], Mapping[Finding, None]]
"""Channel and text → what is replaced in it, in order: that of a set another process would not repeat."""


def _replaced(asked: Mapping[str, list[Demand]]) -> _Replaced:
    replaced: dict[tuple[Channel, int], dict[Finding, None]] = {}
    for found in asked.values():
        for demand in found:
            for finding in demand.found if demand.action == Action.REWRITE else ():
                replaced.setdefault((finding.channel, finding.text), {})[finding] = None
    return replaced


def _stay(findings: Findings, replaced: _Replaced) -> dict[str, int]:
    gone = {finding for found in replaced.values() for finding in found}
    stay = dict.fromkeys(sorted({finding.source for finding in gone}), 0)
    for finding in findings.found:
        if finding.source in stay and finding not in gone:
            stay[finding.source] += 1
    return stay


def _texts(findings: Findings, replaced: _Replaced) -> dict[Channel, tuple[str, ...]]:
    """The texts that shall run: those that were looked at, with what shall be rewritten replaced."""
    return {
        channel: tuple(_rewritten(text, replaced.get((channel, number), ())) for number, text in enumerate(found))
        for channel, found in findings.texts.items()
    }


def _rewritten(text: str, found: Iterable[Finding]) -> str:
    """Replace what was found. Where findings overlap, one description stands for all of them: that of the longest that
    starts first; of two people of one name, that of the first on the list."""
    parts = []
    done = 0
    for finding in sorted(found, key=lambda f: (f.start, -f.end, f.source)):
        if finding.start >= done:
            parts += [text[done : finding.start], finding.neutral]
        done = max(done, finding.end)
    return "".join([*parts, text[done:]])
