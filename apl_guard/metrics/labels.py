"""The values that labels can have."""

from __future__ import annotations

import builtins
from enum import StrEnum

from apl_guard import errors
from apl_guard.decision import Decision
from apl_guard.detect.leaks import Seen
from apl_guard.policy import Action, Mode, OnError

__all__ = [
    "ACTIONS",
    "AUDIT_OUTCOMES",
    "BACKEND_STAGE",
    "DISPOSITIONS",
    "ERROR_TYPES",
    "LEAKS",
    "NONE",
    "OTHER",
    "RELOADS",
    "RESULTS",
    "SEEN",
    "VERDICTS",
    "Known",
    "Stage",
    "action_of",
    "disposition_of",
    "error_type",
    "verdict_of",
]

OTHER = "other"
"""Stands for every value that is not known."""
NONE = "none"
"""Stands for no value."""

RESULTS = ("passed", "blocked", "withheld", "invalid", "failed", "backend_error")
"""How a call can end: an image was released, the policy blocked it, the output check saw somebody of the gallery, its
arguments could not be read, the guard failed, the backend failed."""

RELOADS = ("accepted", "unchanged", "rejected")
"""How reloading a policy can end: another is in force, the file says the same, the one before stays."""

VERDICTS = ("allow", "modify", "deny")
"""What the rules say, in the words of OpenTelemetry's conventions for guardrails."""
ACTIONS = ("allow", "modify", "block", "audit")
"""What is done, in the same words; `audit` is a verdict that was recorded and not carried out."""
DISPOSITIONS = ("blocked", "passed_through", "fallback", "audit")
"""What followed from an error; `audit` is nothing, as in shadow, or where no rule that applies asked."""
AUDIT_OUTCOMES = ("written", "failed")
LEAKS = tuple(seen.value for seen in Seen)
"""What a guarded picture and two plain ones of its prompt show; see `apl_guard.detect.leaks`."""
SEEN = ("nobody", "stranger", "match")
"""What the output check sees in a picture: no face, faces of nobody in the gallery, somebody of the gallery."""


class Stage(StrEnum):
    """What the guard does with a call, in order. The backend's own time belongs to none of these."""

    READ = "read"
    """Sort the arguments into channels."""
    DETECT = "detect"
    """Look at the texts for names, patterns and entities."""
    DECIDE = "decide"
    """Apply the policy."""
    RECORD_DECISION = "record_decision"
    """Make the decision's record durable."""
    FIND_PREFIX = "find_prefix"
    """Find the prefix for the text encoders that are in the pipe now."""
    INJECT = "inject"
    """Put the prefix in front, and check what the text encoders received."""
    CHECK_OUTPUT = "check_output"
    """Look at the finished pictures, where there is an output check."""
    DIGEST_IMAGES = "digest_images"
    """Make digests of the finished pictures for the record."""
    RECORD_OUTCOME = "record_outcome"
    """Make the outcome's record durable."""


BACKEND_STAGE = "generate"
"""Where an error of the backend is counted."""

_VERDICT = {Action.ALLOW: "allow", Action.ANONYMIZE: "modify", Action.REWRITE: "modify", Action.BLOCK: "deny"}
_ACTION = {Action.ALLOW: "allow", Action.ANONYMIZE: "modify", Action.REWRITE: "modify", Action.BLOCK: "block"}


def verdict_of(decision: Decision) -> str:
    """What the rules say, one of `VERDICTS`."""
    return _VERDICT[decision.action]


def action_of(decision: Decision) -> str:
    """What is done, one of `ACTIONS`."""
    return _ACTION[decision.action] if decision.effective == decision.action else "audit"


def disposition_of(decision: Decision, on_error: OnError) -> str:
    """What followed where a detector failed, one of `DISPOSITIONS`."""
    if decision.mode != Mode.ENFORCE or not decision.in_rollout:
        return "audit"
    if decision.effective == Action.BLOCK:
        return "blocked"
    if f"on_error: {OnError.PASSTHROUGH.value}" in decision.unsafe:
        return "passed_through"
    return "fallback" if on_error == OnError.FALLBACK and decision.prefixed else "audit"


def _named_errors() -> frozenset[str]:
    own = {name for name in errors.__all__ if issubclass(getattr(errors, name), errors.GuardUnavailable)}
    common = (OSError, TimeoutError, ConnectionError, MemoryError, RuntimeError, ValueError, TypeError)
    return frozenset({*own, *(kind.__name__ for kind in common), KeyboardInterrupt.__name__})


ERROR_TYPES = _named_errors()
"""The types of errors that are counted by name."""


def error_type(error: BaseException | str) -> str:
    """The name of an error's type, or of the nearest known one that it is derived from.

    Args:
        error: The error, or the name of its type.

    Example:
        >>> error_type(ConnectionResetError()), error_type(KeyError("Mara Voss")), error_type("OSError")
        ('ConnectionError', 'other', 'OSError')
    """
    kind = getattr(builtins, error, None) or getattr(errors, error, None) if isinstance(error, str) else type(error)
    if not isinstance(kind, type):
        return OTHER
    return next((each.__name__ for each in kind.__mro__ if each.__name__ in ERROR_TYPES), OTHER)


class Known:
    """The values of one label that the configuration names, up to a limit.

    Args:
        most: How many can become known. What comes after, such as the digest of a policy that is edited every
            minute, counts as `other`.

    Example:
        >>> tenants = Known()
        >>> tenants.add("acme"), tenants("a name from a request"), tenants(None)
        ('acme', 'other', 'none')
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._values: set[str] = set()

    def add(self, value: str) -> str:
        """Make a value known, and return what stands for it."""
        if len(self._values) < self._most:
            self._values.add(value)
        return self(value)

    def __call__(self, value: str | None) -> str:
        """What stands for a value in a label."""
        if value is None:
            return NONE
        return value if value in self._values else OTHER
