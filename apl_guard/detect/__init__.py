"""Looks at the texts of a request, for what the rules of a policy ask about.

Every text is made canonical first, and what was looked at is what runs.
"""

from __future__ import annotations

from apl_guard.canonical import canonical
from apl_guard.detect.names import NamesIndex
from apl_guard.detect.patterns import PatternIndex
from apl_guard.findings import Finding, Findings
from apl_guard.policy import Policy, Role
from apl_guard.request import TEXT_CHANNELS, Channel, GenerationRequest

__all__ = ["Detectors"]


class Detectors:
    """Everything that looks at texts for one policy.

    Args:
        policy: The policy.

    Raises:
        PolicyInvalid: A list or pattern of it cannot be used.
        ExtraMissing: It needs a package that is not installed.

    Example:
        >>> people = [{"name": "Mara Voss", "neutral": "a woman"}]
        >>> block = {"id": "r", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "block"}}
        >>> policy = Policy.model_validate({
        ...     "apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "demo", "version": 1},
        ...     "spec": {"names": [{"id": "stars", "people": people}], "rules": [block]}})
        >>> prompt = Channel.PROMPT
        >>> request = GenerationRequest("demo:Pipe", {prompt: ("MARA  voss, smiling",)}, frozenset({prompt}))
        >>> finding, = Detectors(policy).look(request).found
        >>> finding.source, finding.start, finding.end
        ('names.stars', 0, 9)
    """

    def __init__(self, policy: Policy) -> None:
        spec = policy.spec
        self._limits = spec.limits
        self._sources = spec.sources
        self._names = NamesIndex(spec.names) if spec.names else None
        self._patterns = PatternIndex(spec.patterns) if spec.patterns else None

    def look(self, request: GenerationRequest, tenant: str | None = None) -> Findings:
        """Look at every text of a request.

        Returns:
            What was found. Nothing, and no source that looked, where no rule asks about texts or where a text is
            none that could be looked at.
        """
        texts = {channel: request.text[channel] for channel in TEXT_CHANNELS if channel in request.text}
        if not self._sources or any(self._limits.fault(found) for found in texts.values()):
            return Findings()
        texts = {channel: tuple(map(canonical, found)) for channel, found in texts.items()}
        found = [
            finding
            for channel, all_texts in texts.items()
            for number, text in enumerate(all_texts)
            for finding in self._look_at(channel, number, text)
        ]
        return Findings(tuple(found), self._sources, {}, texts)

    def _look_at(self, channel: Channel, number: int, text: str) -> list[Finding]:
        names = self._names.find(text) if self._names is not None else []
        patterns = self._patterns.find(text) if self._patterns is not None else []
        return [
            *(
                Finding(
                    source=f"names.{match.names.id}",
                    channel=channel,
                    text=number,
                    start=match.start,
                    end=match.end,
                    neutral=match.neutral,
                )
                for match in names
                if match.names.role == Role.PROTECTED
            ),
            *(
                Finding(
                    source=f"pattern.{match.pattern.id}",
                    channel=channel,
                    text=number,
                    start=match.start,
                    end=match.end,
                    neutral=match.pattern.neutral,
                )
                for match in patterns
            ),
        ]
