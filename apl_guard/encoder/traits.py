"""How close a text encoder is to the one that a prefix was trained with, where the fingerprints differ.

Two encoders that differ in their fingerprints may still be one encoder for every purpose: a copy rounded to
bfloat16, a table of token embeddings with rows added behind it, a fine-tuning too slight to matter. A prefix
carries traits of its encoder, so that the guard can tell these from an encoder that answers otherwise.

Letters: B rows of the probe, L tokens in a row, D width of the hidden states.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from apl_guard.encoder.fingerprint import Fingerprint, Sha256, architecture_of, fingerprint, probe_ids
from apl_guard.encoder.token_embedding import says_where
from apl_guard.encoder.weights import adapters_in, digest_of, projection_of, remembered, table_name, weights_of
from apl_guard.errors import ModelInvalid

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor, nn

__all__ = ["Likeness", "Tier", "Traits", "compare", "traits_of"]

MAX_DISTANCE = 0.01
"""How far the answers of a compatible encoder may be from those of the original, relative to their size.
Rounding to bfloat16 gives about 0.005, changing every weight by 1 % about 0.03."""

_ARCHITECTURE = (
    "model_type",
    *("hidden_size", "d_model", "num_hidden_layers", "num_layers", "num_attention_heads", "num_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "feed_forward_proj", "hidden_activation"),
    *("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "rope_theta"),
    *("max_position_embeddings", "relative_attention_num_buckets", "relative_attention_max_distance"),
)
_PROBE_ROWS, _PROBE_LENGTH = 4, 77
_SKETCH = 256


def _is_sketch(text: str) -> str:
    if len(base64.b64decode(text, validate=True)) != 4 * _SKETCH or not np.isfinite(_values(text)).all():
        raise ValueError(f"expected {_SKETCH} finite float32 values in base64")
    return text


class Traits(BaseModel):
    """What a text encoder is known by, beside its fingerprint. All digests are SHA-256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    """The model type of its configuration, such as `clip_text_model`."""
    architecture: Sha256
    """Of the values of its configuration that change what it computes."""
    vocabulary: Annotated[int, Field(ge=1, le=1 << 24)]
    """How many rows of the token embedding count. Rows behind them were added later."""
    embedding: Sha256
    """Of these rows in float16."""
    embedding_bf16: Sha256
    """Of these rows in bfloat16."""
    weights_bf16: Sha256
    """Of all weights in bfloat16."""
    projection: Sha256 | None
    """Of the projection in float16, where there is one."""
    tokenizer: Sha256
    """Of what the tokenizer does with the first `vocabulary` ids."""
    probe: Annotated[str, AfterValidator(_is_sketch)]
    """What it answers to fixed token ids, as a sketch that keeps distances."""


class Tier(StrEnum):
    """How close two text encoders are."""

    EXACT = "exact"
    """Equal weights and tokenizers."""
    COMPATIBLE = "compatible"
    """The same token embeddings and architecture, and all but the same answers."""
    MODIFIED = "modified"
    """The same architecture with other answers, or with adapters."""
    UNKNOWN = "unknown"
    """Another architecture or tokenizer, or nothing is known to compare by."""


@dataclass(frozen=True)
class Likeness:
    """How close a text encoder is to the one that a prefix was trained with, and why."""

    tier: Tier
    why: str
    distance: float | None = None
    """Between the answers to the probe, relative to their size; None where it was not asked."""


def traits_of(text_encoder: nn.Module, tokenizer: Any) -> Traits:
    """Take the traits of a text encoder with its tokenizer. Runs the text encoder once.

    Raises:
        ModelInvalid: The weights are not in memory.
    """
    vocabulary = len(weights_of(text_encoder)[table_name(text_encoder)])
    return _traits(text_encoder, tokenizer, vocabulary)


def compare(reference: Fingerprint, traits: Traits | None, text_encoder: nn.Module, tokenizer: Any) -> Likeness:
    """Say how close a text encoder is to the one that a prefix was trained with.

    Args:
        reference: The fingerprint in the prefix.
        traits: The traits in the prefix, if it has any.
        text_encoder: The text encoder that is in the pipe now.
        tokenizer: The tokenizer that belongs to it.

    Raises:
        ModelInvalid: The weights are not in memory.
    """
    found = fingerprint(text_encoder, tokenizer)
    if adapters := adapters_in(text_encoder):
        return Likeness(Tier.MODIFIED, f"adapters are loaded into it ({len(adapters)} tensors)")
    if traits is not None and (differs := _projection_differs(traits, text_encoder)):
        return Likeness(Tier.MODIFIED, differs)
    if found == reference:
        return Likeness(Tier.EXACT, "equal weights and tokenizer")
    if traits is None:
        return Likeness(Tier.UNKNOWN, "another fingerprint, and the prefix holds nothing else to compare by")
    if _architecture(text_encoder) != traits.architecture:
        return Likeness(Tier.UNKNOWN, f"another architecture than {traits.kind}")
    rows = len(weights_of(text_encoder)[table_name(text_encoder)])
    if rows < traits.vocabulary or _tokenizer_traits(tokenizer, traits.vocabulary) != traits.tokenizer:
        return Likeness(Tier.UNKNOWN, "another tokenizer")
    mine = _traits(text_encoder, tokenizer, traits.vocabulary)
    if mine.embedding != traits.embedding and mine.embedding_bf16 != traits.embedding_bf16:
        return Likeness(Tier.MODIFIED, "other token embeddings")
    added = f", {len(tokenizer) - traits.vocabulary} tokens added" if len(tokenizer) > traits.vocabulary else ""
    if mine.weights_bf16 == traits.weights_bf16:
        return Likeness(Tier.COMPATIBLE, f"equal weights within bfloat16{added}")
    distance = _distance(traits.probe, mine.probe)
    why = f"other weights, whose answers are {distance:.4f} away{added}"
    return Likeness(Tier.COMPATIBLE if distance <= MAX_DISTANCE else Tier.MODIFIED, why, distance)


def _traits(text_encoder: nn.Module, tokenizer: Any, vocabulary: int) -> Traits:
    """The traits as far as the first `vocabulary` token ids go, kept for as long as the weights stay."""
    import torch

    def compute() -> dict[str, Any]:
        weights, table, projection = weights_of(text_encoder), table_name(text_encoder), projection_of(text_encoder)
        rows = {table: vocabulary}
        embedding = {"table": weights[table]}
        counted = {"table": vocabulary}
        half, brain = torch.float16, torch.bfloat16
        return {
            "embedding": digest_of(embedding, half, start="token embedding", rows=counted),
            "embedding_bf16": digest_of(embedding, brain, start="token embedding", rows=counted),
            "weights_bf16": digest_of(weights, brain, start="text encoder", rows=rows),
            "projection": digest_of(projection, half, start="projection") if projection else None,
            "probe": _probe(text_encoder, vocabulary),
        }

    return Traits(
        kind=str(getattr(getattr(text_encoder, "config", None), "model_type", type(text_encoder).__name__)),
        architecture=_architecture(text_encoder),
        vocabulary=vocabulary,
        tokenizer=_tokenizer_traits(tokenizer, vocabulary),
        **remembered(text_encoder).get(("traits", vocabulary), compute),
    )


def _architecture(text_encoder: nn.Module) -> str:
    return _sha256(["architecture", *architecture_of(text_encoder, _ARCHITECTURE)])


def _projection_differs(traits: Traits, text_encoder: nn.Module) -> str | None:
    """The projection makes the pooled output, which only some pipelines use: those in which both have one."""
    import torch

    projection = projection_of(text_encoder)
    if not projection or traits.projection is None:
        return None
    memory = remembered(text_encoder)
    mine = memory.get("projection", lambda: digest_of(projection, torch.float16, start="projection"))
    return None if mine == traits.projection else "another projection"


def _tokenizer_traits(tokenizer: Any, vocabulary: int) -> str:
    """Without the longest row, which pipelines set themselves, and without tokens that were added later."""
    known = sorted((token, i) for token, i in tokenizer.get_vocab().items() if i < vocabulary)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return _sha256(["tokenizer", known, special, probe_ids(tokenizer)])


def _sha256(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _probe(text_encoder: nn.Module, vocabulary: int) -> str:
    """Run fixed token ids through the text encoder and sketch what comes out."""
    import torch

    encoder: Any = text_encoder
    length = min(_PROBE_LENGTH, getattr(encoder.config, "max_position_embeddings", _PROBE_LENGTH))
    count = _PROBE_ROWS * length
    drawn = np.frombuffer(hashlib.shake_256(b"apl-guard probe 1").digest(4 * count), "<u4") % vocabulary
    ids = torch.from_numpy(drawn.astype(np.int64)).reshape(_PROBE_ROWS, length)
    with torch.no_grad():
        answers = _answers(encoder, ids.to(_device(encoder)))
    if not all(np.isfinite(answer).all() for answer in answers):
        raise ModelInvalid("its answers are not numbers; the weights are damaged", where=type(encoder).__name__)
    return base64.b64encode(_sketch(np.concatenate(answers)).tobytes()).decode()


def _answers(encoder: Any, ids: Tensor) -> list[npt.NDArray[np.float32]]:
    """What the text encoder gives for ids, each of its outputs in one row."""
    import torch

    if says_where(encoder):
        output = encoder(ids, output_hidden_states=True)
        hidden = getattr(output, "last_hidden_state", None)
        outputs = [output.hidden_states[-1] if hidden is None else hidden]  # (B, L, D)
    else:
        outputs = list(encoder(ids, torch.ones_like(ids)))
    return [output.float().cpu().numpy().reshape(-1) for output in outputs]


def _device(encoder: Any) -> Any:
    """Where the text encoder computes, which is not where it lies while it is offloaded."""
    for module in encoder.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return device
    return encoder.device


def _sketch(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum values into 256 places with random signs, the same for everybody.

    The squared distance of two sketches is, on average, that of the values, with a standard deviation of
    sqrt(2 / 256) of it. So a megabyte of hidden states is compared by a kilobyte.
    """
    stream = np.frombuffer(hashlib.shake_256(b"apl-guard sketch 1").digest(2 * len(values)), np.uint8)
    places, signs = stream[: len(values)], np.where(stream[len(values) :] & 1, 1.0, -1.0)
    return np.bincount(places, weights=signs * values.astype(np.float64), minlength=_SKETCH).astype("<f4")


def _values(probe: str) -> npt.NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(probe), "<f4").astype(np.float64)


def _distance(reference: str, found: str) -> float:
    a, b = _values(reference), _values(found)
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-12)
