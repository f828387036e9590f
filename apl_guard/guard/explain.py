"""What the error says of a request that the policy blocks, or that could not be judged."""

from __future__ import annotations

from collections.abc import Mapping

from apl_guard.decision import Decision, Reason
from apl_guard.policy import Action
from apl_guard.request import TEXT_CHANNELS, Channel

__all__ = ["explain", "explain_failure"]

_MOST_EXPLAINED = 20
_MOST_EXPLAINED_NAME = 64


def explain(decision: Decision) -> str:
    """Say what was blocked, and which line of the policy would permit it."""
    blocking = [reason for reason in decision.reasons if reason.action == Action.BLOCK]
    parts = [_explain_reason(reason) for reason in blocking[:_MOST_EXPLAINED]]
    parts += [f"and {len(blocking) - _MOST_EXPLAINED} more"] if len(blocking) > _MOST_EXPLAINED else []
    return f"policy '{decision.policy}' blocks this request: {'; '.join(parts)}"


def explain_failure(decision: Decision) -> str:
    """Say what could not look at the texts of a request, so that nobody knows what the policy says of it."""
    failed = ", ".join(f"{source} ({kind})" for source, kind in sorted(decision.failed.items()))
    whys = sorted({reason.why for reason in decision.reasons if reason.failed})
    return (
        f"{failed or 'a detector'} could not look, so there is no image and policy '{decision.policy}' has not judged "
        f"the request: {'; '.join(whys)}"
    )


_OPENED_BY: Mapping[str, str] = {
    Channel.GUIDANCE: (
        "scales, steps or their like could draw what the negative prompt says; without a negative prompt, or with a "
        "guidance scale of at least 1, they mostly do not"
    ),
    Channel.ATTENTION: "arguments reach the attention layers, or early layers of a text encoder",
    Channel.ADAPTER_WEIGHTS: "LoRA or similar weights are in use",
    Channel.TEXTUAL_INVERSION: "a prompt says a word that was added to the vocabulary",
    Channel.PROMPT_SYNTAX: "a prompt holds signs that are more than text",
}
"""Why a channel is open that no argument is named after."""


def _explain_reason(reason: Reason) -> str:
    channel = reason.channel
    if channel not in list(Channel):
        return f"argument {channel[:_MOST_EXPLAINED_NAME]!a} is unknown to this version of apl-guard"
    text = f"channel '{channel}' is blocked"
    text += f" by rule '{reason.rule}'" if reason.rule is not None else ""
    text += f" (category {reason.category})" if reason.category is not None else ""
    text += f": {reason.why}" if reason.why else ""
    if channel in TEXT_CHANNELS:
        return text
    opened = f" ({_OPENED_BY[channel]})" if channel in _OPENED_BY else ""
    return (
        f"{text}{opened}; a prefix cannot protect it, a rule with `when: {{channels: [{channel}]}}` and "
        "`then: {action: unsafe_allow}` would permit it"
    )
