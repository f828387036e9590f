"""Embedding files: safetensors with one tensor for each text encoder, under the keys that other programs know.

One text encoder: `emb_params`. Several: `clip_l`, `clip_g`, `t5xxl`. The header's metadata, which other programs
pass over, hold what makes it a prefix again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.encoder.traits import traits_of
from apl_guard.errors import InvalidInput, PrefixInvalid
from apl_guard.prefix import Prefix, PrefixMetadata
from apl_guard.prefix.tensorfile import parse_tensors
from apl_guard.printable import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Embedding", "bind", "embedding_keys", "from_embedding", "to_embedding"]

_SLOTS_KEY = "apl_guard_slots"
_ALONE = "emb_params"
_CLIP = ("clip_l", "clip_g")
_BY_WIDTH = {768: "clip_l", 1280: "clip_g", 4096: "t5xxl"}
_SPELLINGS = {"t5": "t5xxl", "t5_xxl": "t5xxl"}
_KEY = re.compile(r"[A-Za-z0-9_]{1,32}")


@dataclass(frozen=True)
class Embedding:
    """Vectors without a text encoder that they are bound to."""

    vectors: Mapping[str, npt.NDArray[np.float32]]
    """Key in the file → array of shape (N, D)."""
    source: str
    """Digest of the file, SHA-256 in hex."""


def embedding_keys(kinds: Mapping[str, str | int]) -> dict[str, str]:
    """Choose the key for each slot.

    Args:
        kinds: Slot → model type of its text encoder, or the width of its vectors where the type is unknown.

    Raises:
        InvalidInput: No key is known for one of them.

    Example:
        >>> embedding_keys({"text_encoder": "clip_text_model"})
        {'text_encoder': 'emb_params'}
        >>> embedding_keys({"text_encoder": "clip_text_model", "text_encoder_2": "t5"})
        {'text_encoder': 'clip_l', 'text_encoder_2': 't5xxl'}
    """
    if len(kinds) == 1:
        return dict.fromkeys(kinds, _ALONE)
    found: dict[str, str] = {}
    for slot, kind in sorted(kinds.items()):
        if isinstance(kind, int):
            key = _BY_WIDTH.get(kind)
        elif kind.startswith("clip"):
            key = next((key for key in _CLIP if key not in found.values()), None)
        else:
            key = "t5xxl" if kind in ("t5", "umt5") else None
        if key is None or key in found.values():
            raise InvalidInput(
                f"no program is known to have a name for a text encoder '{kind}' in {slot}; name it with {slot}=KEY",
                where="key",
            )
        found[slot] = key
    return found


def to_embedding(prefix: Prefix, keys: Mapping[str, str] | None = None) -> bytes:
    """Write a prefix as an embedding file.

    Args:
        prefix: The prefix.
        keys: Slot → key in the file; None chooses those that other programs look for.

    Returns:
        The content of the file. The values are those of the prefix, bit for bit.

    Raises:
        InvalidInput: A key is missing, twice, or malformed.
    """
    from safetensors.numpy import save

    chosen = embedding_keys(_kinds(prefix.metadata)) if keys is None else dict(keys)
    names = set(chosen.values())
    if chosen.keys() != prefix.metadata.widths.keys() or len(names) != len(chosen):
        raise InvalidInput(
            f"expected one key for each of {sorted(prefix.metadata.widths)}, found {chosen}", where="key"
        )
    if bad := [name for name in names if not _KEY.fullmatch(name)]:
        raise InvalidInput(f"expected letters, digits and '_', found '{printable(bad[0])}'", where="key")
    arrays = {chosen[slot]: values.numpy() for slot, values in prefix.vectors.items()}
    said = ",".join(f"{slot}={key}" for slot, key in sorted(chosen.items()))
    return save(arrays, prefix.header() | {_SLOTS_KEY: said})


def from_embedding(content: bytes, where: str | Path) -> Prefix | Embedding:
    """Read an embedding file.

    Args:
        content: The file.
        where: Where it comes from, for messages.

    Returns:
        The prefix, if it was made from one; else vectors that must be bound to text encoders.

    Raises:
        PrefixInvalid: It is no embedding, or not what it says it is.
    """
    where = Path(where)
    vectors, header = parse_tensors(content, where)
    if not vectors:
        raise PrefixInvalid("holds no tensor; expected an embedding", where=where)
    if _SLOTS_KEY in header:
        keys = dict(pair.partition("=")[::2] for pair in header[_SLOTS_KEY].split(","))
        if set(keys.values()) != set(vectors):
            raise PrefixInvalid("the slots in its metadata are not those of its tensors", where=where)
        return Prefix.from_parts({slot: vectors[key] for slot, key in keys.items()}, header, where)
    return Embedding(vectors, hashlib.sha256(content).hexdigest())


def bind(embedding: Embedding, pipe: Any, name: str, keys: Mapping[str, str] | None = None) -> Prefix:
    """Bind an embedding to the text encoders of a pipe, which makes it a prefix.

    Args:
        embedding: The vectors.
        pipe: A pipe of the model that they were trained with. Nobody can check that; only the widths must fit.
        name: What to call it.
        keys: Slot → key in the file; None finds them by the keys' names.

    Raises:
        InvalidInput: The name is malformed, or a key is not in the file.
        PrefixInvalid: The vectors do not fit the text encoders.
    """
    encoders = _encoders_of(pipe)
    chosen = _find_keys(embedding, encoders) if keys is None else dict(keys)
    for slot, key in chosen.items():
        if slot not in encoders or key not in embedding.vectors:
            raise InvalidInput(
                f"found '{printable(slot)}={printable(key)}', expected one of {sorted(encoders)} and one of "
                f"{[printable(key) for key in sorted(embedding.vectors)]}",
                where="key",
            )
    vectors = {slot: embedding.vectors[key] for slot, key in chosen.items()}
    for slot, values in vectors.items():
        width = token_embedding(encoders[slot][0]).embedding_dim
        if values.shape[1] != width:
            raise PrefixInvalid(f"'{chosen[slot]}' is {values.shape[1]} wide, {slot} needs {width}", where="vectors")
    if len({len(values) for values in vectors.values()}) != 1:
        raise PrefixInvalid("the text encoders have different numbers of vectors", where="vectors")
    try:
        metadata = PrefixMetadata(
            name=name,
            n=len(next(iter(vectors.values()))),
            widths={slot: values.shape[1] for slot, values in vectors.items()},
            fingerprints={slot: fingerprint(*encoders[slot]) for slot in vectors},
            traits={slot: traits_of(*encoders[slot]) for slot in vectors},
            evaluation={"imported": {"sha256": embedding.source}},
            created=datetime.now(UTC),
        )
    except ValueError as error:
        raise InvalidInput(
            f"'{printable(name)}' cannot be the name of a prefix; choose one of letters, digits, '.', '_' and '-'",
            where="name",
        ) from error
    return Prefix(vectors, metadata)


def _kinds(metadata: PrefixMetadata) -> dict[str, str | int]:
    return {slot: metadata.traits[slot].kind if metadata.traits else width for slot, width in metadata.widths.items()}


def _encoders_of(pipe: Any) -> dict[str, tuple[Any, Any]]:
    """Slot → text encoder and tokenizer."""
    found = {}
    for slot, part in pipe.components.items():
        tokenizer = pipe.components.get(slot.replace("text_encoder", "tokenizer"))
        if re.fullmatch(r"text_encoder(_[2-9])?", slot) and part is not None and tokenizer is not None:
            found[slot] = (part, tokenizer)
    if not found:
        raise InvalidInput("the pipe has no text encoder with a tokenizer", where="pipe")
    return found


def _find_keys(embedding: Embedding, encoders: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    spelt = {_SPELLINGS.get(key, key): key for key in embedding.vectors}
    if len(spelt) == 1:
        key, values = next(iter(embedding.vectors.items()))
        fitting = [s for s, (e, _) in encoders.items() if token_embedding(e).embedding_dim == values.shape[1]]
        if len(encoders) == 1 or len(fitting) == 1:
            return {(fitting or list(encoders))[0]: key}
    else:
        kinds: dict[str, str | int] = {slot: encoder.config.model_type for slot, (encoder, _) in encoders.items()}
        known = embedding_keys(kinds)
        found = {slot: spelt[key] for slot, key in known.items() if key in spelt}
        if len(found) == len(spelt):
            return found
    raise InvalidInput(
        f"cannot tell which of {[printable(key) for key in sorted(embedding.vectors)]} is for which of "
        f"{sorted(encoders)}; name them with SLOT=KEY",
        where="key",
    )
