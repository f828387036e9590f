"""Finds the patterns of a policy in texts. RE2 takes linear time, whatever expression and text are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apl_guard.errors import ExtraMissing, PolicyInvalid
from apl_guard.policy import Pattern

__all__ = ["PatternIndex", "PatternMatch"]

_MAX_MEMORY = 8 << 20


@dataclass(frozen=True)
class PatternMatch:
    """A match in a text."""

    pattern: Pattern
    start: int
    end: int


class PatternIndex:
    """Compiled patterns.

    Args:
        patterns: The patterns.

    Raises:
        PolicyInvalid: One is no expression of RE2, or too large.
        ExtraMissing: The extra `regex` is not installed.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._compiled: list[tuple[Pattern, Any]] = [(pattern, _compile(pattern)) for pattern in patterns]

    def find(self, text: str) -> list[PatternMatch]:
        """Every match in a canonical text that is not empty."""
        return [
            PatternMatch(pattern, match.start(), match.end())
            for pattern, compiled in self._compiled
            for match in compiled.finditer(text)
            if match.end() > match.start()
        ]


def _compile(pattern: Pattern) -> Any:
    try:
        import re2
    except ImportError as error:
        raise ExtraMissing("regex", needs="google-re2") from error
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern.regex, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise PolicyInvalid(f"not an expression of RE2: {reason[:200]}", where=f"pattern '{pattern.id}'") from None
