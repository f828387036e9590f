"""Keyed digests of texts: what stands in records in place of prompts and subjects."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from apl_guard.request.canonical import canonical

__all__ = ["digest", "key_id", "normal_digest"]

_MAX_NORMAL = 10_000
"""Of a longer text, the start is evened out: it is refused anyhow, and must not cost seconds."""


def digest(key: bytes, text: str) -> str:
    """The keyed digest of a text, in hex.

    Example:
        >>> digest(bytes(32), "a cat") == digest(bytes(32), "a cat") != digest(bytes(31) + b"1", "a cat")
        True
    """
    mac = _keyed(key).copy()
    # A prompt may hold lone surrogates; it must not be able to stop the record.
    mac.update(text.encode("utf-8", "surrogatepass"))
    return mac.hexdigest()


def normal_digest(key: bytes, text: str) -> str:
    """The keyed digest of what a text looks like: of its canonical form without case.

    Example:
        >>> normal_digest(bytes(32), "A  cat") == normal_digest(bytes(32), "a cat")
        True
    """
    return digest(key, canonical(text[:_MAX_NORMAL]).casefold())


@lru_cache(maxsize=4)
def _keyed(key: bytes) -> hmac.HMAC:
    """Where each digest under this key begins. `hmac.digest` would give up Python's lock for a few hundred bytes."""
    return hmac.new(key, digestmod="sha256")


@lru_cache(maxsize=64)
def key_id(key: bytes) -> str:
    """What tells which key made a digest, and nothing about the key."""
    return hashlib.sha256(b"apl-guard digest key\0" + key).hexdigest()[:16]
