"""Finds persons in texts by a model from a local folder, within a time limit, each text once."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from apl_guard.detect.cache import TextCache
from apl_guard.detect.person_reader import PersonMatch, PersonReader
from apl_guard.detect.span_reader import SpanReader
from apl_guard.detect.token_reader import TokenReader
from apl_guard.detect.worker import Worker
from apl_guard.policy import Person

__all__ = ["PersonDetector", "PersonMatch"]

_MOST_REMEMBERED = 100
"""Persons in one text. A text of more is looked at anew each time, rather than kept."""


class PersonDetector:
    """Asks a model who is in a text: one of GLiNER where its folder says so, else a token-classification model.

    Args:
        settings: What the policy says about it.
        least: Scores below this are of no interest.

    Raises:
        PolicyInvalid: There is no such model in the folder, or it does not know the labels.
        ExtraMissing: A package is not installed.
    """

    def __init__(self, settings: Person, least: float) -> None:
        self._seconds = settings.milliseconds / 1000
        least = max(least, 1e-6)
        self._reader: PersonReader = (SpanReader if SpanReader.knows(settings.path) else TokenReader)(settings, least)
        self._cache = TextCache[tuple[PersonMatch, ...]](settings.cache)
        self._worker = Worker("apl-guard person")

    @property
    def sha256(self) -> str:
        """Digest of the model's weights."""
        return self._reader.sha256

    def find(self, texts: Sequence[str], tenant: str | None) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some canonical texts.

        Raises:
            TimeoutError: The model did not answer in time.
            Exception: Whatever the model raises.
        """
        known = {text: self._cache.get(tenant, text) for text in texts}
        unknown = [text for text, found in known.items() if found is None]
        if unknown:
            until = monotonic() + self._seconds
            answers = self._worker.run(lambda: self._reader.read(unknown, until), self._seconds)
            for text, found in zip(unknown, answers, strict=True):
                known[text] = found
                if len(found) <= _MOST_REMEMBERED:
                    self._cache.put(tenant, text, found)
        return [known[text] or () for text in texts]
