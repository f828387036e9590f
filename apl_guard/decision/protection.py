"""What can be said of a released image: whether what the policy asks for it was done and cannot have been undone."""

from __future__ import annotations

from enum import StrEnum

from apl_guard.decision.decide import Decision
from apl_guard.policy import Action

__all__ = ["Protection", "protection_of"]


class Protection(StrEnum):
    """Whether what a policy asks for protection was done. How well a prefix hides people is not known here."""

    APPLIED = "applied"
    """Every text encoder received the prefix, and nothing was permitted that could undo it."""
    UNPROVEN = "unproven"
    """Done, and nobody can show that it held: the backend gives no receipt, a text encoder got the prompts without
    prefix, or the policy permits something that could undo it, such as the caller's code between denoising steps."""
    MISSING = "missing"
    """Not done: in shadow, outside of the rollout, in mode `unsafe_off`, because the policy permits what nothing
    protects, or because a part of the guard failed and the policy lets such calls pass."""
    NOT_ASKED = "not_asked"
    """The rules let the request pass as it is, and nothing that they permit is unsafe."""


def protection_of(decision: Decision, *, proven: bool, failed: bool = False) -> Protection:
    """What can be said of the images that a decision led to.

    Args:
        decision: What was decided.
        proven: Whether a receipt shows the prefix in front of every prompt of every text encoder.
        failed: Whether a part of the guard failed, or saw what would have been withheld, and the images are
            released all the same.

    Example:
        >>> from apl_guard.decision import decide
        >>> from apl_guard.policy import Policy
        >>> from apl_guard.request import Channel, GenerationRequest
        >>> request = GenerationRequest("demo:Pipe", {Channel.PROMPT: ("a cat",)}, frozenset({Channel.PROMPT}))
        >>> protection_of(decide(Policy.load("anonymize_faces"), request), proven=True).value
        'applied'
        >>> protection_of(decide(Policy.load("shadow_anonymize_faces"), request), proven=False).value
        'missing'
    """
    if failed or decision.effective != decision.action:
        return Protection.MISSING
    if decision.action == Action.ALLOW:
        return Protection.MISSING if decision.unsafe else Protection.NOT_ASKED
    return Protection.APPLIED if proven and not decision.unsafe else Protection.UNPROVEN
