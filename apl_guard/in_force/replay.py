"""What a policy would have decided about calls that are on record.

A record holds no text. What rules ask about channels, tenants, routes, models and shares can be answered from
it. What they ask about texts can be only where the policy in force then is at hand and asked the same; else both
answers are tried, and where they lead to different actions the call counts as undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from apl_guard.decision import Decision, decide
from apl_guard.decision.findings import Finding, Findings
from apl_guard.decision.rules import NO_RULE
from apl_guard.errors import InvalidInput
from apl_guard.policy import NO_TEXT, Action, Policy, Rule, ShareKey, WithoutPrefix
from apl_guard.request import TEXT_CHANNELS, Channel, GenerationRequest
from apl_guard.request.context import Context

__all__ = ["Replayed", "replay"]

DECISION_EVENT = "guard.decision"


@dataclass(frozen=True)
class Replayed:
    """A call on record, and what a policy would have decided about it."""

    decision_id: str
    timestamp: str
    tenant: str | None
    before: Action
    after: frozenset[Action]
    """More than one where the record does not say enough."""

    @property
    def change(self) -> str:
        """`same`, `stricter`, `more lenient` or `undecided`."""
        if len(self.after) > 1:
            return "undecided"
        (after,) = self.after
        if after == self.before:
            return "same"
        return "stricter" if after.strictness > self.before.strictness else "more lenient"


def replay(policy: Policy, records: Iterable[Mapping[str, Any]], was: Policy | None = None) -> Iterator[Replayed]:
    """Decide anew about every call on record.

    Args:
        policy: The policy to try.
        records: Records of a log; those that are no decisions are passed over.
        was: The policy that was in force. For records with its digest, what was found in the texts then counts for
            lists, patterns and a detector that are the same in both.

    Raises:
        InvalidInput: A decision record holds what this version cannot read.
    """
    for record in records:
        if record.get("event") == DECISION_EVENT:
            try:
                yield _replayed(policy, record, was)
            except (InvalidInput, KeyError, TypeError, ValueError, AttributeError) as error:
                raise InvalidInput(
                    f"cannot be read ({type(error).__name__}); it may be of another version of apl-guard",
                    where=f"decision {str(record.get('decision_id'))[:64]!r}",
                ) from error


def _replayed(policy: Policy, record: Mapping[str, Any], was: Policy | None) -> Replayed:
    request = _request(policy, record)
    context = Context(record["tenant"], record["route"])
    known = _known(policy, record, was)
    unknown = policy.spec.sources - known.looked
    # Each answer that the record leaves open, and each side of a share that is drawn by text.
    decisions = [
        decide(tried, request, context, findings)
        for tried, findings in product(_by_share(policy), _both_answers(known, unknown, request))
    ]
    actions = _with_between(policy, request, unknown, decisions)
    return Replayed(
        decision_id=record["decision_id"],
        timestamp=str(record.get("timestamp", "")),
        tenant=record["tenant"],
        before=Action(record["action"]),
        after=frozenset(actions),
    )


def _request(policy: Policy, record: Mapping[str, Any]) -> GenerationRequest:
    """The request, with texts of the same number and length as far as limits ask for that."""
    limits = policy.spec.limits
    no_text = {reason["channel"] for reason in record["reasons"] if reason["why"] == NO_TEXT}
    texts = {}
    for channel, found in record["text"].items():
        lengths = [length for text in found for length in _lengths(text)][: limits.texts + 1]
        letter = "\ud800" if channel in no_text else "x"
        texts[Channel(channel)] = tuple(letter * min(length, limits.characters + 1) for length in lengths)
    return GenerationRequest(
        record["backend"],
        texts,
        frozenset(map(Channel, record["channels"])),
        tuple(record["unknown"]),
        carries_prefix=record["carries_prefix"],
        id=record["decision_id"],
    )


def _lengths(text: Mapping[str, Any]) -> list[int]:
    """Of the texts of one entry: where it stands for several, of as many of which the longest is as long as theirs."""
    return [text.get("longest", text["chars"]), *[0] * (text.get("texts", 1) - 1)]


def _known(policy: Policy, record: Mapping[str, Any], was: Policy | None) -> Findings:
    """What of the findings on record counts for this policy."""
    is_whole = record["findings_count"] == len(record["findings"])
    if was is None or was.digest != record["policy"]["digest"] or not is_whole:
        return Findings()
    same = _described(policy).items() & _described(was).items()
    looked = frozenset(source for source, _ in same) & frozenset(record["looked"])
    found = (Finding.model_validate(finding) for finding in record["findings"])
    return Findings(tuple(finding for finding in found if finding.source in looked), looked)


def _described(policy: Policy) -> dict[str, str]:
    """Source → everything that the policy says about it."""
    spec = policy.spec
    described = {f"names.{names.id}": names.model_dump_json() for names in spec.names}
    described |= {f"pattern.{pattern.id}": pattern.model_dump_json() for pattern in spec.patterns}
    if spec.person is not None:
        # Names of people who consent take findings back.
        consenting = [names.model_dump_json() for names in spec.names if names.role == "consenting"]
        described["entity.person"] = spec.person.model_dump_json() + "".join(consenting)
    return {source: text for source, text in described.items() if source in spec.sources}


def _both_answers(known: Findings, unknown: frozenset[str], request: GenerationRequest) -> list[Findings]:
    """As if the sources of which nothing is known had found nothing, and as if each had found something everywhere."""
    looked = known.looked | unknown
    everywhere = tuple(
        Finding(source=source, channel=channel, text=0, start=0, end=1)
        for source in sorted(unknown)
        for channel in TEXT_CHANNELS
        if channel in request.text
    )
    answers = [Findings(known.found, looked)]
    return [*answers, Findings(known.found + everywhere, looked)] if everywhere else answers


def _with_between(
    policy: Policy, request: GenerationRequest, unknown: frozenset[str], decisions: Sequence[Decision]
) -> set[Action]:
    """What is decided where nothing and where everything was found, and what a part of it might have come to."""
    might: dict[str, set[Action]] = {}
    for rule in policy.rules:
        is_drawn = rule.when.share is not None and rule.when.share.key == ShareKey.PROMPT
        if is_drawn or any(unknown.intersection(sources) for sources, _ in rule.when.asks):
            for channel in request.used.intersection(rule.when.channels):
                might.setdefault(channel.value, set()).add(_action_of(rule, policy, request))
    actions = {decision.action for decision in decisions}
    for decision in decisions:
        # A channel to which no rule applies is blocked; one that might have applied is more lenient.
        lenient = [
            min(might[reason.channel], key=_strictness)
            if reason.why == NO_RULE and reason.channel in might
            else reason.action
            for reason in decision.reasons
        ]
        actions.add(max(lenient, key=_strictness, default=decision.action))
    least, most = min(map(_strictness, actions)), max(map(_strictness, actions))
    return actions | {each for found in might.values() for each in found if least < each.strictness < most}


def _action_of(rule: Rule, policy: Policy, request: GenerationRequest) -> Action:
    action = rule.then.action.action
    if action != Action.ANONYMIZE or request.carries_prefix:
        return action
    return Action.REWRITE if policy.spec.without_prefix == WithoutPrefix.REWRITE else Action.BLOCK


def _strictness(action: Action) -> int:
    return action.strictness


def _by_share(policy: Policy) -> list[Policy]:
    """The policy; where a rule has a share by prompt, it with everybody out and with everybody in."""
    drawn = [r for r in policy.rules if r.when.share is not None and r.when.share.key == ShareKey.PROMPT]
    if not drawn:
        return [policy]
    tried = []
    for percent in (0, 100):
        rules = tuple(
            rule.model_copy(
                update={
                    "when": rule.when.model_copy(
                        update={"share": rule.when.share.model_copy(update={"percent": percent})}
                    )
                }
            )
            if rule in drawn and rule.when.share is not None
            else rule
            for rule in policy.rules
        )
        tried.append(policy.model_copy(update={"spec": policy.spec.model_copy(update={"rules": rules})}))
    return tried
