"""A copy of a pipe's tokenizer that no other thread uses without a lock."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any

from apl_guard.encoder.fingerprint import tokenizer_state
from apl_guard.forks import FreshLock

__all__ = ["private_copy"]


class _Copies(FreshLock):
    """What was copied."""

    def after_fork(self) -> None:
        """In the child of a fork. A thread of the parent may have been making a copy, or using one."""
        super().after_fork()
        # By identity, because tokenizers compare by value.
        self.known: dict[int, tuple[weakref.ref[Any], object, tuple[Any, threading.RLock]]] = {}


_copies = _Copies()


def private_copy(tokenizer: Any) -> tuple[Any, threading.RLock]:
    """A copy of the tokenizer with the lock that guards it, kept as long as the tokenizer lives unchanged."""
    key = id(tokenizer)
    state = (
        tokenizer_state(tokenizer),
        *(tokenizer.padding_side, tokenizer.truncation_side, getattr(tokenizer, "chat_template", None)),
    )
    with _copies.lock:
        known = _copies.known.get(key)
        if known is not None and known[0]() is tokenizer and known[1] == state:
            return known[2]
        private = copy.deepcopy(tokenizer)
        restore = getattr(private, "_wrap_decode_method_backend_tokenizer", None)
        if restore is not None:
            restore()  # CLIP's patch of its decoder does not survive copying
        # Padding after encoding is on purpose here, so the advice against it is off.
        private.__dict__.setdefault("deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True
        forget = weakref.ref(tokenizer, lambda _: _copies.known.pop(key, None))
        _copies.known[key] = (forget, state, (private, threading.RLock()))
        return _copies.known[key][2]
