"""What was decided and what was really done, written down: two records for each call.

The decision is durable before generation starts, the outcome before an image is released. Records hold keyed
digests of prompts, never their text.
"""

from apl_guard.audit.log import AuditLog
from apl_guard.audit.records import Outcome

__all__ = ["AuditLog", "Outcome"]
