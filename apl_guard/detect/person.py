"""Finds persons in texts by a token-classification model of transformers, from a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from apl_guard.detect.cache import TextCache
from apl_guard.detect.worker import Worker
from apl_guard.errors import ExtraMissing, PolicyInvalid
from apl_guard.policy import Person

__all__ = ["PersonDetector", "PersonMatch"]

_MOST_TOKENS = 512
_OVERLAP = 32
"""Tokens that two windows of a long text share, so that a name at the border is whole in one of them."""
_MOST_WINDOWS = 16
"""In one run of the model, so that no request takes all memory."""
_MOST_REMEMBERED = 100
"""Persons in one text. A text of more is looked at anew each time, rather than kept."""
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PersonMatch:
    """Somebody in a text."""

    start: int
    end: int
    score: float


class PersonDetector:
    """A model that says of each token whether it belongs to the name of a person.

    Args:
        settings: What the policy says about it.
        least: Scores below this are of no interest.

    Raises:
        PolicyInvalid: There is no such model in the folder, or it does not know the labels.
        ExtraMissing: transformers is not installed.
    """

    def __init__(self, settings: Person, least: float) -> None:
        self._settings = settings
        self._least = max(least, 1e-6)
        self._tokenizer, self._model, self.sha256 = _open(settings.path, settings.sha256)
        labels: dict[int, str] = self._model.config.id2label
        self._persons = [number for number, label in labels.items() if _kind(label) in settings.labels]
        if not self._persons:
            kinds = sorted({_kind(label) for label in labels.values()} - {"O"})
            raise PolicyInvalid(
                f"the model knows {', '.join(kinds) or 'no labels'}; the policy asks for {', '.join(settings.labels)}",
                where=settings.path,
            )
        most = min(
            self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", _MOST_TOKENS)
        )
        self._most_tokens = min(most, _MOST_TOKENS)
        self._cache = TextCache[tuple[PersonMatch, ...]](settings.cache)
        self._worker = Worker("apl-guard person")

    def find(self, texts: Sequence[str], tenant: str | None) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some canonical texts.

        Raises:
            TimeoutError: The model did not answer in time.
            Exception: Whatever the model raises.
        """
        known = {text: self._cache.get(tenant, text) for text in texts}
        unknown = [text for text, found in known.items() if found is None]
        if unknown:
            seconds = self._settings.milliseconds / 1000
            until = monotonic() + seconds
            for text, found in zip(unknown, self._worker.run(lambda: self._run(unknown, until), seconds), strict=True):
                known[text] = found
                if len(found) <= _MOST_REMEMBERED:
                    self._cache.put(tenant, text, found)
        return [known[text] or () for text in texts]

    def _run(self, texts: list[str], until: float) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some texts.

        Raises:
            TimeoutError: It is later than `until`, so nobody waits any more, and others wait for their turn.
        """
        encoded = self._tokenizer(
            texts,
            max_length=self._most_tokens,
            stride=min(_OVERLAP, self._most_tokens // 4),
            truncation=True,
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        windows = encoded.pop("overflow_to_sample_mapping").tolist()
        offsets = encoded.pop("offset_mapping").tolist()
        special = encoded.pop("special_tokens_mask").tolist()
        scores = []
        for first in range(0, len(windows), _MOST_WINDOWS):
            if monotonic() > until:
                raise TimeoutError
            scores += self._scores({name: part[first : first + _MOST_WINDOWS] for name, part in encoded.items()})
        pieces: list[list[PersonMatch]] = [[] for _ in texts]
        for window, places, is_special, window_scores in zip(windows, offsets, special, scores, strict=True):
            for (start, end), skip, score in zip(places, is_special, window_scores, strict=True):
                if not skip and end > start and score >= self._least:
                    pieces[window].append(PersonMatch(start, end, min(score, 1.0)))
        return [_joined(text, found) for text, found in zip(texts, pieces, strict=True)]

    def _scores(self, encoded: dict[str, Any]) -> list[list[float]]:
        """Of each token of some windows, how sure the model is that it belongs to a person."""
        import torch

        with torch.inference_mode():
            logits = self._model(**encoded).logits.float()
        if not torch.isfinite(logits).all():
            raise ArithmeticError("the model answers with numbers that are none")
        scores: list[list[float]] = logits.softmax(-1)[..., self._persons].sum(-1).tolist()
        return scores


def _joined(text: str, pieces: list[PersonMatch]) -> tuple[PersonMatch, ...]:
    """Pieces of words as whole words, and words that stand side by side as one name."""
    joined: list[PersonMatch] = []
    for piece in sorted(pieces, key=lambda p: (p.start, p.end)):
        start, end = piece.start, piece.end
        while start > 0 and text[start - 1].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum():
            end += 1
        before = joined[-1] if joined else None
        if before is not None and (start <= before.end or not any(map(str.isalnum, text[before.end : start]))):
            joined[-1] = PersonMatch(before.start, max(end, before.end), max(piece.score, before.score))
        else:
            joined.append(PersonMatch(start, end, piece.score))
    return tuple(joined)


def _kind(label: str) -> str:
    """PER of B-PER and I-PER."""
    return label.removeprefix("B-").removeprefix("I-")


def _open(path: Path, sha256: str | None) -> tuple[Any, Any, str]:
    """Tokenizer, model, and digest of its weights."""
    try:
        from transformers import AutoModelForTokenClassification, AutoTokenizer
    except ImportError as error:
        raise ExtraMissing("ner", needs="transformers") from error
    try:
        with (path / _WEIGHTS).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 not in (None, found):
            raise PolicyInvalid(f"{_WEIGHTS} has sha256 {found}; the policy wants {sha256}", where=path)
        # Without the last, transformers would ask on the terminal whether to run code from the folder.
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForTokenClassification.from_pretrained(path, use_safetensors=True, **options)
    except PolicyInvalid:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PolicyInvalid(
            f"no token-classification model of transformers with {_WEIGHTS} ({reason})", where=path
        ) from error
    if not tokenizer.is_fast:
        raise PolicyInvalid("its tokenizer cannot say where tokens are; expected a fast one", where=path)
    return tokenizer, model.eval(), found
