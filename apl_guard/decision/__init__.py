"""What a policy says about one request: what was seen in its texts, which rules apply, what they come to."""

from apl_guard.decision.decide import Decision, Reason, decide
from apl_guard.decision.protection import Protection, protection_of

__all__ = ["Decision", "Protection", "Reason", "decide", "protection_of"]
