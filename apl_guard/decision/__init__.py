"""What a policy says about one request: what was seen in its texts, which rules apply, what they come to."""

from apl_guard.decision.decide import Decision, Reason, decide

__all__ = ["Decision", "Reason", "decide"]
