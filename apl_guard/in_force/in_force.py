"""A policy in force: the file, what looks at texts for it, and proof that it decides as its own tests say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apl_guard.decision import Decision, decide
from apl_guard.decision.findings import Findings
from apl_guard.decision.rules import Verdict, judge
from apl_guard.detect import Detectors
from apl_guard.errors import DetectorFailed, PolicyInvalid
from apl_guard.policy import Case, Mode, Policy
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context

__all__ = ["Explanation", "Failure", "PolicyInForce", "as_request"]


@dataclass(frozen=True)
class Failure:
    """A test of a policy that does not hold."""

    test: str
    """Its name."""
    text: str
    """What was found and what was expected. Never text of the test's prompts."""
    is_blind: bool = False
    """Whether nothing is known of the policy, because something that a rule asks could not look."""


@dataclass(frozen=True)
class Explanation:
    """A decision and what led to it."""

    decision: Decision
    verdicts: tuple[Verdict, ...]
    """Of every rule, for every channel that it names and the request uses."""


class PolicyInForce:
    """A policy with everything that it needs to decide. It does not change; another takes its place.

    Args:
        policy: The policy.

    Raises:
        PolicyInvalid: A list or pattern of it cannot be used.
        ExtraMissing: It needs a package that is not installed.

    Example:
        >>> in_force = PolicyInForce.tested(Policy.load("anonymize_faces"))
        >>> prompt = Channel.PROMPT
        >>> request = GenerationRequest("demo:Pipe", {prompt: ("a cat",)}, frozenset({prompt}))
        >>> in_force.decide(request, Context()).action.value
        'anonymize'
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._detectors = Detectors(policy)

    @classmethod
    def tested(cls, policy: Policy) -> PolicyInForce:
        """The same, after the policy's own tests held.

        Raises:
            PolicyInvalid: A list or pattern cannot be used, or a test does not hold.
            DetectorFailed: What a rule asks could not look at the text of a test. Later it may.
            ExtraMissing: It needs a package that is not installed.
        """
        in_force = cls(policy)
        failures = in_force.run_tests()
        if failures:
            first = min(failures, key=lambda failure: failure.is_blind)
            what = (
                f"test '{first.test}' does not hold: {first.text} ({len(failures)} of {len(policy.tests)} failed); "
                "see: apl-guard policy test"
            )
            where = f"policy '{policy.name}'"
            raise DetectorFailed(f"{where}: {what}") if first.is_blind else PolicyInvalid(what, where=where)
        return in_force

    @property
    def models(self) -> Mapping[str, str]:
        """Source → SHA-256 of the weights of the detector behind it."""
        return self._detectors.models

    def look(self, request: GenerationRequest, context: Context) -> Findings:
        """Look at the texts of a request."""
        return self._detectors.look(request, context.tenant)

    def decide(self, request: GenerationRequest, context: Context, findings: Findings | None = None) -> Decision:
        """Decide about a request.

        Args:
            request: The request.
            context: For whom and on which way it came in.
            findings: What was seen in its texts. None has a look first.
        """
        return decide(self.policy, request, context, findings or self.look(request, context))

    def explain(self, request: GenerationRequest, context: Context) -> Explanation:
        """Decide, and say of every rule whether it applies and why."""
        findings = self.look(request, context)
        decision = decide(self.policy, request, context, findings)
        return Explanation(decision, judge(self.policy, request, context, findings))

    def run_tests(self) -> tuple[Failure, ...]:
        """Decide about the requests of the policy's tests, as if it were enforced for all of them.

        Returns:
            The tests that do not hold.
        """
        failures = []
        enforced = self.policy.in_mode(Mode.ENFORCE)
        for case in self.policy.tests:
            request, context = as_request(case), Context(case.given.tenant, case.given.route)
            findings = self.look(request, context)
            if text := _unseen(judge(enforced, request, context, findings), findings):
                failures.append(Failure(case.name, text, is_blind=True))
            elif text := _differences(case, decide(enforced, request, context, findings)):
                failures.append(Failure(case.name, text))
        return tuple(failures)


def as_request(case: Case) -> GenerationRequest:
    """The request that a test describes."""
    given = case.given
    text = {Channel.PROMPT: given.prompt, Channel.NEGATIVE_PROMPT: given.negative_prompt}
    texts = {channel: (found,) for channel, found in text.items() if found is not None}
    return GenerationRequest(
        given.model,
        texts,
        frozenset({*texts, *given.channels}),
        carries_prefix=given.carries_prefix,
        id=case.name,
    )


def _unseen(verdicts: tuple[Verdict, ...], findings: Findings) -> str:
    """What could not look, and a rule asks. What `on_error` makes of that proves nothing about the rule."""
    asked = {source for verdict in verdicts if verdict.applies is None for source in verdict.missing}
    return ", ".join(
        f"{source} did not look ({findings.failed[source]})" for source in sorted(asked & set(findings.failed))
    )


def _differences(case: Case, decision: Decision) -> str:
    """What of a decision is not as a test expects."""
    expect = case.expect
    rules = sorted({reason.rule for reason in decision.reasons if reason.rule is not None})
    found = []
    if decision.action != expect.action:
        found.append(f"action {decision.action.value}, expected {expect.action.value}")
    if expect.rule is not None and expect.rule not in rules:
        found.append(f"decided by {', '.join(rules) or 'no rule'}, expected {expect.rule}")
    if expect.category is not None and decision.category != expect.category:
        found.append(f"category {decision.category or 'none'}, expected {expect.category}")
    runs = decision.would_run.get(Channel.PROMPT, ())
    if expect.prompt is not None and runs != (expect.prompt,):
        found.append("another prompt would run than the one expected")
    return "; ".join(found)
