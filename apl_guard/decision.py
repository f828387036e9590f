"""What a policy says about one request. Pure: no file, no clock, no model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from apl_guard.policy import Action, Mode, Policy
from apl_guard.request import Channel, GenerationRequest

__all__ = ["Decision", "Reason", "decide"]


class Reason(BaseModel):
    """What decided about one channel, or about one argument that no channel is known for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str
    rule: str | None
    """The id of the rule; None where no rule names the channel, so it is blocked."""
    action: Action

    def __str__(self) -> str:
        if self.rule is not None:
            return f"rule '{self.rule}': {self.action.value} {self.channel}"
        return f"no rule: {self.action.value} {self.channel}"


class Decision(BaseModel):
    """What was decided for one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """The same as the request's; it joins decision, outcome and whatever else is recorded."""
    policy: str
    policy_version: int
    policy_digest: str
    mode: Mode
    action: Action
    """What the rules say."""
    effective: Action
    """What is done: the same in mode `enforce`, else `allow`."""
    reasons: tuple[Reason, ...]


def decide(policy: Policy, request: GenerationRequest) -> Decision:
    """Apply a policy to a request. The strictest of the channels' actions is the request's.

    Args:
        policy: The policy.
        request: The request, as an adapter read it.

    Returns:
        The decision. An argument that the adapter does not know is blocked whatever the policy says.

    Example:
        >>> prompt = Channel.PROMPT
        >>> request = GenerationRequest("demo:Pipe", {prompt: ("a cat",)}, frozenset({prompt}))
        >>> decide(Policy.load("anonymize_faces"), request).action.value
        'anonymize'
    """
    reasons = [_channel(policy, channel, request) for channel in sorted(request.used)]
    reasons += [Reason(channel=name, rule=None, action=Action.BLOCK) for name in sorted(request.unknown)]
    if policy.mode == Mode.OFF:
        reasons = []
    action = max((reason.action for reason in reasons), key=lambda a: a.strictness, default=Action.ALLOW)
    return Decision(
        id=request.id,
        policy=policy.name,
        policy_version=policy.version,
        policy_digest=policy.digest,
        mode=policy.mode,
        action=action,
        effective=action if policy.mode == Mode.ENFORCE else Action.ALLOW,
        reasons=tuple(reasons),
    )


def _channel(policy: Policy, channel: Channel, request: GenerationRequest) -> Reason:
    naming = [rule for rule in policy.rules if channel in rule.channels]
    if not naming:
        return Reason(channel=channel.value, rule=None, action=Action.BLOCK)
    strictest = max(naming, key=lambda rule: rule.action.strictness)
    action = strictest.action
    if action == Action.ANONYMIZE and not request.carries_prefix:
        action = Action.BLOCK  # what was to be anonymized would pass as it is
    return Reason(channel=channel.value, rule=strictest.id, action=action)
