"""A GLiNER model: it is told in words what to look for, and says of each row of words how surely it is that."""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from apl_guard.detect.person_reader import MOST_TOKENS, MOST_WINDOWS, WEIGHTS, PersonMatch, read_weights
from apl_guard.errors import ExtraMissing, PolicyInvalid
from apl_guard.policy import Person

__all__ = ["SpanReader"]

_LABELS = ("person",)
_CONFIG = "gliner_config.json"
_LEAST_ROOM = 32
"""Tokens that a window must have for text, beside the labels."""


class _Word(NamedTuple):
    """A word of a text."""

    text: str
    start: int
    end: int
    tokens: int
    """How many the model reads it as."""


class SpanReader:
    """Reads texts with such a model.

    Args:
        settings: What the policy says about it.
        least: Scores below this are of no interest.

    Raises:
        PolicyInvalid: There is no such model in the folder, or its labels leave no room for text.
        ExtraMissing: gliner is not installed.
    """

    def __init__(self, settings: Person, least: float) -> None:
        self._least = least
        self._labels = list(dict.fromkeys(settings.labels or _LABELS))
        self._gliner, self.sha256 = _open(settings.path, settings.sha256)
        self.model = self._gliner.model
        config, processor = self._gliner.config, self._gliner.data_processor
        self._split, self._tokenizer = processor.words_splitter, processor.transformer_tokenizer
        self._most_words, self._width = config.max_len, config.max_width
        # What the model reads in front of a text: each label after its mark, then a mark.
        before = [part for label in self._labels for part in (processor.ent_token, label)] + [processor.sep_token]
        most = getattr(config.encoder_config, "max_position_embeddings", MOST_TOKENS)
        most = min(self._tokenizer.model_max_length, most, MOST_TOKENS)
        self._room = most - len(self._tokenizer(before, is_split_into_words=True)["input_ids"])
        if self._room < _LEAST_ROOM:
            raise PolicyInvalid(f"its labels leave {self._room} of {most} tokens for text", where=settings.path)

    @staticmethod
    def knows(folder: Path) -> bool:
        """Whether a folder says that it holds such a model."""
        return (folder / _CONFIG).exists()

    def read(self, texts: list[str], until: float) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some texts; see `PersonReader`."""
        windows = [(number, window) for number, text in enumerate(texts) for window in self._windows(self._words(text))]
        seen: list[list[PersonMatch]] = [[] for _ in texts]
        for first in range(0, len(windows), MOST_WINDOWS):
            if monotonic() > until:
                raise TimeoutError
            some = windows[first : first + MOST_WINDOWS]
            for (number, _), found in zip(some, self._look([window for _, window in some]), strict=True):
                seen[number] += found
        return [_best(found) for found in seen]

    def _words(self, text: str) -> list[_Word]:
        split = list(self._split(text))
        if not split:
            return []
        encoded = self._tokenizer([word for word, _, _ in split], is_split_into_words=True, add_special_tokens=False)
        tokens = Counter(encoded.word_ids())
        return [_Word(word, start, end, tokens[place]) for place, (word, start, end) in enumerate(split)]

    def _windows(self, words: list[_Word]) -> Iterator[list[_Word]]:
        """Parts of a text that the model reads whole. They overlap, so that a name at a border is whole in one.

        The model would leave out the end of what is too long for it, and say nothing.
        """
        first = 0
        while first < len(words):
            last, tokens = first, 0
            while (
                last < min(len(words), first + self._most_words)
                and (tokens := tokens + words[last].tokens) <= self._room
            ):
                last += 1
            last = max(last, first + 1)  # of a word that is longer than a window, the model reads the start
            yield words[first:last]
            if last == len(words):
                return
            first = max(first + 1, last - self._width)

    def _look(self, windows: list[list[_Word]]) -> list[list[PersonMatch]]:
        """What the model sees in each of some windows."""
        import torch

        asked = [{"tokenized_text": [word.text for word in window], "ner": None} for window in windows]
        collate = self._gliner.data_collator_class(
            self._gliner.config,
            data_processor=self._gliner.data_processor,
            return_tokens=True,
            return_entities=True,
            return_id_to_classes=True,
            prepare_labels=False,
        )
        # `GLiNER.inference` would go through a DataLoader, which draws from the random numbers of the whole process:
        # with a global seed, pictures would depend on whether a text was looked at.
        batch = collate(asked, entity_types=self._labels)
        with torch.inference_mode():
            logits = self.model(**batch, threshold=self._least)[0].float()  # (window, first word, further words, label)
        found = []
        for window, spans in zip(windows, logits, strict=True):
            first = torch.arange(spans.shape[0])[:, None]
            inside = first + torch.arange(spans.shape[1])[None, :] < len(window)
            if not torch.isfinite(spans[inside]).all():
                raise ArithmeticError("the model answers with numbers that are none")
            scores = spans.sigmoid().amax(-1).masked_fill(~inside, 0.0)
            places = (scores >= self._least).nonzero().tolist()
            found.append([PersonMatch(window[i].start, window[i + n].end, float(scores[i, n])) for i, n in places])
        return found


def _best(found: Iterable[PersonMatch]) -> tuple[PersonMatch, ...]:
    """Of matches that overlap, the surest one."""
    taken: list[PersonMatch] = []
    for match in sorted(found, key=lambda m: (-m.score, m.start, -m.end)):
        place = bisect_left(taken, match.end, key=lambda m: m.start)
        if place == 0 or taken[place - 1].end <= match.start:
            insort(taken, match, key=lambda m: m.start)
    return tuple(taken)


def _open(path: Path, sha256: str | None) -> tuple[Any, str]:
    """The model, and the digest of its weights."""
    try:
        from gliner import GLiNER
    except ImportError as error:
        raise ExtraMissing("ner", needs="gliner") from error
    try:
        _, found = read_weights(path, sha256)
        _check_config(path)
        gliner = GLiNER.from_pretrained(str(path), local_files_only=True, strict=True)
    except PolicyInvalid:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PolicyInvalid(f"no model of GLiNER with {WEIGHTS} ({reason})", where=path) from error
    if not gliner.data_processor.transformer_tokenizer.is_fast:
        raise PolicyInvalid("its tokenizer cannot say where tokens are; expected a fast one", where=path)
    return gliner.eval(), found


def _check_config(path: Path) -> None:
    """Refuse what would run code of the folder, what would be looked for elsewhere, and kinds of models not read here.

    gliner trusts the code that a configuration names, and takes encoders and tokenizers that are missing from the hub.
    """
    for file in path.glob("*.json"):
        if _names_code(json.loads(file.read_bytes())):
            raise PolicyInvalid(f"{file.name} names code (auto_map), which is not run", where=path)
    config = json.loads((path / _CONFIG).read_bytes())
    if not isinstance(config.get("encoder_config"), dict) or not (path / "tokenizer_config.json").exists():
        raise PolicyInvalid(
            "encoder or tokenizer are not in the folder; save it whole: save_pretrained(…, safe_serialization=True)",
            where=path,
        )
    others = [
        f"'{name}'" for name in ("labels_encoder", "labels_decoder", "relations_layer") if config.get(name) is not None
    ]
    if str(config.get("span_mode")).startswith("token"):
        others.append("'span_mode': token by token")
    if config.get("words_splitter_type", "whitespace") != "whitespace":
        others.append("'words_splitter_type': other than whitespace")
    if others:
        raise PolicyInvalid(f"this kind of GLiNER is not supported: {', '.join(others)}", where=path)


def _names_code(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(map(_names_code, value.values()))
    return isinstance(value, list) and any(map(_names_code, value))
