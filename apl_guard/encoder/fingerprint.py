"""What a prefix is bound to: the digest of a text encoder's weights and of its tokenizer.

Two copies of one text encoder have the same fingerprint in float32 and in float16, on any device and under
any version of transformers. Other weights, added tokens or loaded adapters give another fingerprint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.encoder.weights import adapters_in, digest_of, remembered, weights_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Fingerprint", "Sha256", "architecture_of", "fingerprint", "probe_ids", "tokenizer_state"]

# Texts whose token ids tell tokenizers with one vocabulary but other merges or normalisation apart.
_PROBE_TEXTS = ("", "a photo of Mara Voss", "İstanbul\u00a0CAFÉ  naïve", "don't, it's 2026!", "北京 😀")
# What changes the function of a text encoder without changing its weights.
_ARCHITECTURE = ("hidden_act", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A digest in hex."""


class Fingerprint(BaseModel):
    """The digests of a text encoder's weights and of its tokenizer, each SHA-256 in hex.

    Example:
        >>> Fingerprint(weights="ab" * 32, tokenizer="cd" * 32).key
        'abababababab-cdcdcdcd'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Sha256
    tokenizer: Sha256

    @property
    def key(self) -> str:
        """A short form for people to compare. Code compares whole fingerprints."""
        return f"{self.weights[:12]}-{self.tokenizer[:8]}"

    def __str__(self) -> str:
        return self.key


def fingerprint(text_encoder: nn.Module, tokenizer: Any) -> Fingerprint:
    """Take the fingerprint of a text encoder with its tokenizer.

    The digests are kept per object. A later call checks cheaply that nothing has changed since.

    Args:
        text_encoder: A transformers text model.
        tokenizer: The tokenizer that belongs to it.

    Raises:
        ModelInvalid: The weights are not in memory, so they cannot be read.
    """
    memory = remembered(text_encoder)
    weights = memory.get("weights", lambda: _weights_digest(text_encoder))
    return Fingerprint(weights=weights, tokenizer=_tokenizer_digest(tokenizer))


def _weights_digest(text_encoder: nn.Module) -> str:
    import torch

    # float16 is what most checkpoints ship in, so that both copies of one encoder agree.
    start = "apl-guard text encoder 1\0" + json.dumps(architecture_of(text_encoder, _ARCHITECTURE))
    digest = digest_of(weights_of(text_encoder), torch.float16, start=start)
    adapters = adapters_in(text_encoder)
    return digest_of(adapters, torch.float16, start=f"adapters on {digest}") if adapters else digest


def architecture_of(text_encoder: nn.Module, names: Sequence[str]) -> list[str]:
    """Values of a text encoder's configuration, as text."""
    config = getattr(text_encoder, "config", None)
    return [str(getattr(config, name, None)) for name in names]


# Tokenizers compare by value and cannot be hashed, so they are kept by identity.
_known_tokenizers: dict[int, tuple[weakref.ref[Any], object, str]] = {}


def tokenizer_state(tokenizer: Any) -> object:
    """What differs where a tokenizer was changed, found out in a moment: the words that were added, of which some may
    have been exchanged by as many others, and the lengths and tokens that it works with."""
    # By their ids: a table of all words that were ever added takes ten times as long.
    added = tuple(tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size, len(tokenizer))))
    return added, len(tokenizer), tokenizer.model_max_length, str(tokenizer.special_tokens_map)


def _tokenizer_digest(tokenizer: Any) -> str:
    state = tokenizer_state(tokenizer)
    key = id(tokenizer)
    known = _known_tokenizers.get(key)
    if known is not None and known[0]() is tokenizer and known[1] == state:
        return known[2]
    digest = _hash_tokenizer(tokenizer)
    forget = weakref.ref(tokenizer, lambda _: _known_tokenizers.pop(key, None))
    _known_tokenizers[key] = (forget, state, digest)
    return digest


def _hash_tokenizer(tokenizer: Any) -> str:
    described = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "max_length": tokenizer.model_max_length,
        "probes": probe_ids(tokenizer),
    }
    text = json.dumps(described, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(b"apl-guard tokenizer 1\0" + text.encode()).hexdigest()


def probe_ids(tokenizer: Any) -> list[list[int]]:
    """Token ids of the probe texts, neither cut nor padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [list(tokenizer(text)["input_ids"]) for text in _PROBE_TEXTS]
    # A copy, because truncation and padding are state of the object that all threads share.
    private = copy.deepcopy(backend)
    private.no_truncation()
    private.no_padding()
    return [list(private.encode(text).ids) for text in _PROBE_TEXTS]
