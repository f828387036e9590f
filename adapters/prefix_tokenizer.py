"""The tokenizer that a pipeline sees during a guarded call.

The guard writes a *mark* in front of each prompt: random letters, new for each call, that no user can know.
This tokenizer takes the mark away and makes room for the prefix in its place. Texts without the mark, such as
negative prompts, are tokenized as ever. So the pipeline's own code needs no change, and what it does with the
text in between cannot separate a prompt from its prefix without the receipt showing it.
"""

from __future__ import annotations

import copy
import secrets
import threading
import weakref
from typing import Any

from apl_guard.errors import PrefixNotApplied

from .sequence import frame_of, pad, sequence, token_ids

__all__ = ["PrefixTokenizer", "new_mark"]


def new_mark() -> str:
    """Make a mark: lower-case letters only, so that cleaning and lower-casing of prompts leave it alone.

    Example:
        >>> new_mark().isalpha(), new_mark() == new_mark()
        (True, False)
    """
    return "zqx" + "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(24)) + "xqz"


class PrefixTokenizer:
    """Stands in for a tokenizer during one call.

    Args:
        tokenizer: The pipe's own tokenizer. It is copied once and never touched again: the state of a fast
            tokenizer is shared between threads.
        mark: The mark of this call.
        n: Number of prefix vectors.
    """

    def __init__(self, tokenizer: Any, mark: str, n: int) -> None:
        self._private, self._lock = _private_copy(tokenizer)
        self._mark = mark
        self._n = n
        self.tokens_cut: tuple[int, ...] = ()
        """For each marked text, how many of its tokens did not fit."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._private, name)

    def __len__(self) -> int:
        return len(self._private)

    def __call__(
        self,
        text: Any,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Tokenize as the pipe's own tokenizer would, with room for the prefix where the mark is."""
        texts = [text] if isinstance(text, str) else text
        marked = [isinstance(t, str) and self._mark in t for t in texts] if isinstance(texts, list) else [False]
        asked: dict[str, Any] = {"padding": padding, "truncation": truncation}
        asked |= {"max_length": max_length, "return_tensors": return_tensors}
        with self._lock:
            if not any(marked):
                return self._private(text, **asked, **options)
            if not all(marked) or options or (isinstance(text, str) and return_tensors is None):
                raise PrefixNotApplied("the pipeline calls its tokenizer in a way that the guard does not know")
            return self._with_prefix(texts, **asked)

    def _with_prefix(
        self,
        texts: list[str],
        padding: bool | str,
        truncation: bool | str,
        max_length: int | None,
        return_tensors: Any,
    ) -> Any:
        from transformers import BatchEncoding

        frame = frame_of(self._private)
        limit = (max_length or frame.length) if truncation else None
        rows, cuts = [], []
        for text in texts:
            row, cut = sequence(token_ids(self._private, self._without_mark(text)), frame, self._n, limit)
            rows.append(row)
            cuts.append(cut)
        if limit is not None:
            self.tokens_cut = tuple(cuts)
        masks = [[1] * len(row) for row in rows]
        if padding:
            length = (max_length or frame.length) if padding == "max_length" else max(map(len, rows))
            rows = pad(rows, frame, length)
            masks = [[*mask, *[0] * (length - len(mask))] for mask in masks]
        return BatchEncoding({"input_ids": rows, "attention_mask": masks}, tensor_type=return_tensors)

    def _without_mark(self, text: str) -> str:
        start = f"{self._mark} "
        if not text.startswith(start) or text.count(self._mark) != 1:
            raise PrefixNotApplied("the pipeline moved or repeated the mark of the guard in a prompt")
        return text.removeprefix(start)

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Split a text into tokens; the mark counts as none."""
        with self._lock:
            tokens: list[str] = self._private.tokenize(text.replace(f"{self._mark} ", ""), **options)
            return tokens

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Turn ids back into texts; the prefix has none."""
        rows = [[int(i) for i in row if i >= 0] for row in sequences]
        with self._lock:
            texts: list[str] = self._private.batch_decode(rows, **options)
            return texts


_lock = threading.Lock()
# By identity, because tokenizers compare by value.
_copies: dict[int, tuple[weakref.ref[Any], object, tuple[Any, threading.RLock]]] = {}


def _private_copy(tokenizer: Any) -> tuple[Any, threading.RLock]:
    """A copy of the tokenizer with the lock that guards it, kept as long as the tokenizer lives unchanged."""
    key = id(tokenizer)
    state = (len(tokenizer), tokenizer.model_max_length, str(tokenizer.special_tokens_map))
    with _lock:
        known = _copies.get(key)
        if known is not None and known[0]() is tokenizer and known[1] == state:
            return known[2]
        private = copy.deepcopy(tokenizer)
        restore = getattr(private, "_wrap_decode_method_backend_tokenizer", None)
        if restore is not None:
            restore()  # CLIP's patch of its decoder does not survive copying
        forget = weakref.ref(tokenizer, lambda _: _copies.pop(key, None))
        _copies[key] = (forget, state, (private, threading.RLock()))
        return _copies[key][2]
