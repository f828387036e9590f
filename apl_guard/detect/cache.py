"""Remembers what was found in texts, for each tenant apart: how fast an answer comes tells nothing about others."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["TextCache"]

_MOST_TENANTS = 1000

_T = TypeVar("_T")


class TextCache(Generic[_T]):
    """What was found, by tenant and text. It holds no text, only keyed digests.

    Args:
        texts: How many texts of one tenant are remembered; those asked for last stay.
        tenants: How many tenants are.

    Example:
        >>> cache = TextCache[int](texts=1)
        >>> cache.put("acme", "a cat", 7)
        >>> cache.get("acme", "a cat"), cache.get("other", "a cat")
        (7, None)
    """

    def __init__(self, texts: int, tenants: int = _MOST_TENANTS) -> None:
        self._texts = texts
        self._tenants = tenants
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._found: OrderedDict[str | None, OrderedDict[bytes, _T]] = OrderedDict()

    def get(self, tenant: str | None, text: str) -> _T | None:
        """What was found, or None where that is not known."""
        digest = self._digest(text)
        with self._lock:
            known = self._found.get(tenant)
            if known is None or digest not in known:
                return None
            self._found.move_to_end(tenant)
            known.move_to_end(digest)
            return known[digest]

    def put(self, tenant: str | None, text: str, found: _T) -> None:
        """Remember what was found."""
        digest = self._digest(text)
        with self._lock:
            known = self._found.setdefault(tenant, OrderedDict())
            self._found.move_to_end(tenant)
            known[digest] = found
            known.move_to_end(digest)
            while len(known) > self._texts:
                known.popitem(last=False)
            while len(self._found) > self._tenants:
                self._found.popitem(last=False)

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=16).digest()
