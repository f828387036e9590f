"""What was decided and what was really done, written down: two records for each call.

The decision is durable before generation starts, the outcome before an image is released. Records hold keyed
digests of prompts, never their text. `docs/audit.md` describes the files and what they prove.

    record ──► writer (one sync for many callers) ──► segment
                  │ tree over its records
                  ▼
    checkpoint, signed with the key of the epoch ──► checkpoints.jsonl ──► every witness
"""

from apl_guard.audit.log import AuditLog
from apl_guard.audit.record_fields import Outcome
from apl_guard.audit.sealed_writer import LogOptions

__all__ = ["AuditLog", "LogOptions", "Outcome"]
