"""A policy: which channels a request may use, and what happens to what comes through them.

A policy is a YAML file of rules. Each rule has conditions and an action. Where several rules apply to a channel
the strictest action counts, and a channel to which no rule applies is blocked.
"""

from apl_guard.policy.cases import Case
from apl_guard.policy.document import Policy, built_in_policies, named_files, policy_files
from apl_guard.policy.schema import Rule, Share, Then, When
from apl_guard.policy.sources import Entry, Listed, Names, Pattern, Person
from apl_guard.policy.words import (
    DEFAULT_SCORE,
    NO_TEXT,
    Action,
    Entity,
    Mode,
    OnError,
    Role,
    ShareKey,
    Verb,
    WithoutPrefix,
)

__all__ = [
    "DEFAULT_SCORE",
    "NO_TEXT",
    "Action",
    "Case",
    "Entity",
    "Entry",
    "Listed",
    "Mode",
    "Names",
    "OnError",
    "Pattern",
    "Person",
    "Policy",
    "Role",
    "Rule",
    "Share",
    "ShareKey",
    "Then",
    "Verb",
    "When",
    "WithoutPrefix",
    "built_in_policies",
    "named_files",
    "policy_files",
]
