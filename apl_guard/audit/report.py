"""What is found out about a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Report", "Verdict"]


class Verdict(StrEnum):
    """What can be said about a log."""

    VALID = "valid"
    TAMPERED = "tampered"
    TORN = "torn"
    """Whole up to where a crash cut it; the next process that opens it records and seals that."""
    UNVERIFIABLE = "unverifiable"
    """Nothing speaks against it, but there is nothing to hold it against."""


@dataclass
class Report:
    """What `verify_log` found."""

    verdict: Verdict = Verdict.VALID
    findings: list[str] = field(default_factory=list)
    """What was changed, the first bad record of each writer first."""
    torn: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    log: str | None = None
    public_key: str | None = None
    records: int = 0
    sealed: int = 0
    """Records under a checkpoint."""
    witnessed: int = 0
    """Records under a checkpoint that a witness holds too."""
    checkpoints: int = 0
    writers: int = 0
    newest_checkpoint: str | None = None
