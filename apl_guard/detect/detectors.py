"""Looks at the texts of a request, for what the rules of a policy ask about.

Every text is made canonical first, and what was looked at is what runs.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

from apl_guard.decision.findings import Finding, Findings
from apl_guard.detect.names import NamesIndex
from apl_guard.detect.patterns import PatternIndex
from apl_guard.detect.person import PersonDetector, PersonMatch
from apl_guard.policy import DEFAULT_SCORE, Entity, Policy, Role, WithoutPrefix
from apl_guard.request import TEXT_CHANNELS, GenerationRequest, Reading
from apl_guard.request.canonical import as_it_looks, canonical

__all__ = ["Detectors"]

_PERSON = f"entity.{Entity.PERSON.value}"


class Detectors:
    """Everything that looks at texts for one policy.

    Args:
        policy: The policy.

    Raises:
        PolicyInvalid: A list or pattern of it cannot be used.
        ExtraMissing: It needs a package that is not installed.

    Example:
        >>> from apl_guard.request import Channel
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
        self._person_neutral = spec.person.neutral if spec.person is not None else ""
        self._person = PersonDetector(spec.person, _least_score(policy)) if spec.person is not None else None

    @property
    def models(self) -> dict[str, str]:
        """Source → SHA-256 of the weights of the model behind it."""
        return {} if self._person is None else {_PERSON: self._person.sha256}

    def look(self, request: GenerationRequest, tenant: str | None = None) -> Findings:
        """Look at every text of a request.

        Args:
            request: The request.
            tenant: For whom it is; what is remembered about texts is remembered for each tenant apart.

        Returns:
            What was found, and which sources failed. Nothing, and no source that looked, where no rule asks about
            texts or where a text is none that could be looked at.
        """
        texts = {channel: request.text[channel] for channel in TEXT_CHANNELS if channel in request.text}
        if not self._sources or any(self._limits.fault(found) for found in texts.values()):
            return Findings()
        texts = {channel: tuple(map(canonical, found)) for channel, found in texts.items()}
        at = [
            (channel, number, reading)
            for channel, found in texts.items()
            for number, text in enumerate(found)
            for reading in (*_as_seen(text), *request.readings(text))
        ]
        flat = [reading.text for _, _, reading in at]
        found: list[Finding] = []
        failed: dict[str, str] = {}
        for kind, look in (("names.", self._listed), ("pattern.", self._matching), ("entity.", self._persons)):
            try:
                seen = look(flat, tenant)
            except Exception as error:
                # Whatever goes wrong in there, the policy says what follows.
                failed |= {source: type(error).__name__ for source in self._sources if source.startswith(kind)}
                continue
            found += [
                Finding(channel=channel, text=number, **_placed(each, reading, len(texts[channel][number])))
                for (channel, number, reading), all_seen in zip(at, seen, strict=True)
                for each in all_seen
            ]
        # What several readings of a text show is one finding.
        return Findings(tuple(dict.fromkeys(found)), self._sources - failed.keys(), failed, texts)

    def _listed(self, texts: list[str], tenant: str | None) -> list[list[_Seen]]:
        if self._names is None:
            return [[] for _ in texts]
        return [
            [
                _Seen(f"names.{match.names.id}", match.start, match.end, 1.0, match.neutral)
                for match in self._names.find(text)
                if match.names.role == Role.PROTECTED
            ]
            for text in texts
        ]

    def _matching(self, texts: list[str], tenant: str | None) -> list[list[_Seen]]:
        if self._patterns is None:
            return [[] for _ in texts]
        return [
            [
                _Seen(f"pattern.{match.pattern.id}", match.start, match.end, 1.0, match.pattern.neutral)
                for match in self._patterns.find(text)
            ]
            for text in texts
        ]

    def _persons(self, texts: list[str], tenant: str | None) -> list[list[_Seen]]:
        if self._person is None:
            return [[] for _ in texts]
        seen = []
        for text, found in zip(texts, self._person.find(texts, tenant), strict=True):
            consenting = self._consenting(text) if found else ([], [])
            seen.append(
                [
                    _Seen(_PERSON, match.start, match.end, match.score, self._person_neutral)
                    for match in found
                    if not _is_within(match, *consenting)
                ]
            )
        return seen

    def _consenting(self, text: str) -> tuple[list[int], list[int]]:
        """Where names of people who consent begin, in order, and how far any of those until there reaches."""
        found = self._names.find(text) if self._names is not None else []
        names = sorted((m for m in found if m.names.role == Role.CONSENTING), key=lambda match: match.start)
        return [match.start for match in names], list(accumulate((match.end for match in names), max))


def _as_seen(text: str) -> list[Reading]:
    """A canonical text, and as it looks where it is written with letters that look like others."""
    return [Reading(each, range(len(text))) for each in dict.fromkeys((text, as_it_looks(text)))]


def _is_within(person: PersonMatch, starts: list[int], reaches: list[int]) -> bool:
    """Whether all of what the detector sees there is one of these names."""
    before = bisect_right(starts, person.start)
    return before > 0 and reaches[before - 1] >= person.end


class _Seen(NamedTuple):
    """Something in a text, in the words of `Finding`."""

    source: str
    start: int
    end: int
    score: float
    neutral: str


def _placed(seen: _Seen, reading: Reading, characters: int) -> dict[str, Any]:
    """What was seen in a reading, in the words of `Finding`, at its place in the text."""
    start, end = reading.span(seen.start, seen.end, characters)
    return {**seen._asdict(), "start": start, "end": end}


def _least_score(policy: Policy) -> float:
    """The least score of a person that anything in the policy is interested in."""
    asked = [least for rule in policy.rules for sources, least in rule.when.asks if _PERSON in sources]
    rewrites_all = policy.spec.without_prefix == WithoutPrefix.REWRITE
    return min([*asked, DEFAULT_SCORE] if rewrites_all else asked)
