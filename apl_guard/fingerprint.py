"""What a prefix is bound to: the digest of a text encoder's weights and of its tokenizer.

Two copies of one text encoder have the same fingerprint in float32 and in float16, on any device and under
any version of transformers. Other weights, added tokens or loaded adapters give another fingerprint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from apl_guard.errors import ModelInvalid

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Fingerprint", "fingerprint"]

# Texts whose token ids tell tokenizers with one vocabulary but other merges or normalisation apart.
_PROBE_TEXTS = ("", "a photo of Mara Voss", "İstanbul\u00a0CAFÉ  naïve", "don't, it's 2026!", "北京 😀")
# What changes the function of a text encoder without changing its weights.
_ARCHITECTURE = ("hidden_act", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")
_SAMPLES_PER_TENSOR = 256

_Digest = Field(pattern=r"^[0-9a-f]{64}$")


class Fingerprint(BaseModel):
    """The digests of a text encoder's weights and of its tokenizer, each SHA-256 in hex.

    Example:
        >>> Fingerprint(weights="ab" * 32, tokenizer="cd" * 32).key
        'abababababab-cdcdcdcd'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = _Digest
    tokenizer: str = _Digest

    @property
    def key(self) -> str:
        """A short form for people to compare. Code compares whole fingerprints."""
        return f"{self.weights[:12]}-{self.tokenizer[:8]}"

    def __str__(self) -> str:
        return self.key


def fingerprint(text_encoder: nn.Module, tokenizer: Any) -> Fingerprint:
    """Take the fingerprint of a text encoder with its tokenizer.

    The digests are kept per object. A later call checks cheaply that nothing has changed since: places and
    versions of all tensors, and a sample of their values.

    Args:
        text_encoder: A transformers text model.
        tokenizer: The tokenizer that belongs to it.

    Raises:
        ModelInvalid: The weights are not in memory (sequential offload), so they cannot be read.
    """
    return Fingerprint(weights=_weights_digest(text_encoder), tokenizer=_tokenizer_digest(tokenizer))


_lock = threading.Lock()
_known_weights: weakref.WeakKeyDictionary[nn.Module, tuple[object, str]] = weakref.WeakKeyDictionary()
# Tokenizers compare by value and cannot be hashed, so they are kept by identity.
_known_tokenizers: dict[int, tuple[weakref.ref[Any], object, str]] = {}


def _weights_digest(text_encoder: nn.Module) -> str:
    state = _stamp(text_encoder)
    with _lock:
        known = _known_weights.get(text_encoder)
    if known is not None and known[0] == state:
        return known[1]
    digest = _hash_weights(text_encoder)
    with _lock:
        _known_weights[text_encoder] = (state, digest)
    return digest


def _canonical(text_encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that make up the text encoder, by names that every version of transformers agrees on."""
    named = {
        name.replace("_orig_mod.", "").removeprefix("text_model."): tensor
        for name, tensor in text_encoder.state_dict(keep_vars=True).items()
    }
    for name in sorted(named):
        # The projection is not used by every pipeline; position_ids is a constant that some versions save.
        if not name.endswith("position_ids") and not name.startswith("text_projection"):
            yield name, named[name]


def _stamp(text_encoder: nn.Module) -> object:
    """What changes whenever the weights change, at the cost of milliseconds."""
    import torch

    places: list[tuple[object, ...]] = []
    samples: list[Tensor] = []
    with torch.no_grad():
        for name, tensor in _canonical(text_encoder):
            if tensor.is_meta:
                raise ModelInvalid(
                    f"weight '{name}' of the text encoder is not in memory; "
                    "the guard needs the text encoder loaded, so do not offload it sequentially"
                )
            version = 0 if tensor.is_inference() else tensor._version
            places.append((name, tensor.shape, tensor.dtype, tensor.device, tensor.data_ptr(), version))
            flat = tensor.detach().reshape(-1)
            samples.append(flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)].float())
        # Joined before it leaves the device: one transfer instead of one for each tensor.
        sample = torch.cat([s.to(samples[0].device) for s in samples]).cpu().numpy().tobytes() if samples else b""
    return tuple(places), hashlib.sha256(sample).digest()


def _hash_weights(text_encoder: nn.Module) -> str:
    import torch

    digest = hashlib.sha256(b"apl-guard text encoder 1\0")
    config = getattr(text_encoder, "config", None)
    digest.update(json.dumps([str(getattr(config, name, None)) for name in _ARCHITECTURE]).encode())
    with torch.no_grad():
        for name, tensor in _canonical(text_encoder):
            # float16 is what most checkpoints ship in, so that both copies of one encoder agree.
            half = tensor.detach().to("cpu", torch.float16).contiguous()
            digest.update(json.dumps([name, list(half.shape)]).encode())
            digest.update(half.numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    state = (len(tokenizer), tokenizer.model_max_length, str(tokenizer.special_tokens_map))
    key = id(tokenizer)
    with _lock:
        known = _known_tokenizers.get(key)
    if known is not None and known[0]() is tokenizer and known[1] == state:
        return known[2]
    digest = _hash_tokenizer(tokenizer)
    with _lock:
        forget = weakref.ref(tokenizer, lambda _: _known_tokenizers.pop(key, None))
        _known_tokenizers[key] = (forget, state, digest)
    return digest


def _hash_tokenizer(tokenizer: Any) -> str:
    described = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "max_length": tokenizer.model_max_length,
        "probes": _probe_ids(tokenizer),
    }
    text = json.dumps(described, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(b"apl-guard tokenizer 1\0" + text.encode()).hexdigest()


def _probe_ids(tokenizer: Any) -> list[list[int]]:
    """Token ids of the probe texts, neither cut nor padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [list(tokenizer(text)["input_ids"]) for text in _PROBE_TEXTS]
    # A copy, because truncation and padding are state of the object that all threads share.
    private = copy.deepcopy(backend)
    private.no_truncation()
    private.no_padding()
    return [list(private.encode(text).ids) for text in _PROBE_TEXTS]
