"""A token-classification model of transformers: it says of each token whether it belongs to the name of a person."""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic
from typing import Any

from apl_guard.detect.person_reader import MOST_TOKENS, MOST_WINDOWS, WEIGHTS, PersonMatch, read_weights
from apl_guard.errors import PolicyInvalid
from apl_guard.policy import Person

__all__ = ["TokenReader"]

_LABELS = ("PER", "PERSON")
_OVERLAP = 32
"""Tokens that two windows of a long text share, so that a name at the border is whole in one of them."""


class TokenReader:
    """Reads texts with such a model.

    Args:
        settings: What the policy says about it.
        least: Scores below this are of no interest.

    Raises:
        PolicyInvalid: There is no such model in the folder, or it does not know the labels.
    """

    def __init__(self, settings: Person, least: float) -> None:
        self._least = least
        self._tokenizer, self.model, self.sha256 = _open(settings.path, settings.sha256)
        wanted = settings.labels or _LABELS
        labels: dict[int, str] = self.model.config.id2label
        self._persons = [number for number, label in labels.items() if _kind(label) in wanted]
        if not self._persons:
            kinds = sorted({_kind(label) for label in labels.values()} - {"O"})
            raise PolicyInvalid(
                f"the model knows {', '.join(kinds) or 'no labels'}; the policy asks for {', '.join(wanted)}",
                where=settings.path,
            )
        most = min(self._tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", MOST_TOKENS))
        self._most_tokens = min(most, MOST_TOKENS)

    def read(self, texts: list[str], until: float) -> list[tuple[PersonMatch, ...]]:
        """Everybody in each of some texts; see `PersonReader`."""
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
        for first in range(0, len(windows), MOST_WINDOWS):
            if monotonic() > until:
                raise TimeoutError
            scores += self._scores({name: part[first : first + MOST_WINDOWS] for name, part in encoded.items()})
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
            logits = self.model(**encoded).logits.float()
        if not torch.isfinite(logits).all():
            raise ArithmeticError("the model answers with numbers that are none")
        scores: list[list[float]] = logits.softmax(-1)[..., self._persons].sum(-1).tolist()
        return scores


_WITHIN_NAMES = re.compile(r"(?:_|[^\w,;:/&|+<>=!?()\[\]{}\u3001\uff0c])*")
"""What may stand between the words of a name. Behind a comma or an ampersand stands somebody else."""


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
        if before is not None and (start <= before.end or _WITHIN_NAMES.fullmatch(text, before.end, start)):
            joined[-1] = PersonMatch(before.start, max(end, before.end), max(piece.score, before.score))
        else:
            joined.append(PersonMatch(start, end, piece.score))
    return tuple(joined)


def _kind(label: str) -> str:
    """PER of B-PER and I-PER."""
    return label.removeprefix("B-").removeprefix("I-")


def _open(path: Path, sha256: str | None) -> tuple[Any, Any, str]:
    """Tokenizer, model, and digest of its weights."""
    import torch
    from safetensors.torch import load
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    try:
        weights, found = read_weights(path, sha256)
        # Without the last, transformers would ask on the terminal whether to run code from the folder.
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        config = AutoConfig.from_pretrained(path, **options)
        with torch.device("meta"):
            kind = type(AutoModelForTokenClassification.from_config(config, trust_remote_code=False))
        # From the folder, transformers would take the weights of any other file that something in it names.
        model, loading = kind.from_pretrained(None, config=config, state_dict=load(weights), output_loading_info=True)
    except PolicyInvalid:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PolicyInvalid(
            f"no token-classification model of transformers with {WEIGHTS} ({reason})", where=path
        ) from error
    if missing := sorted(loading["missing_keys"]):
        # transformers would draw them at random.
        raise PolicyInvalid(f"no token-classification model: {WEIGHTS} lacks {', '.join(missing[:5])}", where=path)
    if not tokenizer.is_fast:
        raise PolicyInvalid("its tokenizer cannot say where tokens are; expected a fast one", where=path)
    return tokenizer, model.eval(), found
