"""A prefix: the learned vectors that go in front of every prompt, and the folder they are kept in.

A prefix has one tensor of shape (N, D) for each text-encoder slot. N is the number of vectors, D the width of
that encoder's token embeddings. (Elsewhere this is called a soft prompt; *prefix tuning* is another thing.)

The folder holds `prefix.safetensors`, which is the prefix, and `card.md` and pictures, which are for people.
The file comes from strangers, so nothing in it is trusted: sizes are limited before parsing, keys, types and
shapes must be exact, values finite, and one digest binds the vectors to their metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from apl_guard.errors import PrefixInvalid
from apl_guard.prefix.layout import CARD_NAME, FILE_NAME
from apl_guard.prefix.metadata import PrefixMetadata
from apl_guard.prefix.places import find_path
from apl_guard.prefix.tensorfile import MAX_FILE_BYTES, parse_model, parse_tensors, read_file
from apl_guard.printable import printable
from apl_guard.storage import write_folder

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

__all__ = ["Prefix"]

MAX_NORM_RATIO = 16
"""How many times the largest token embedding a vector may be. Trained ones are about twice as large."""
_METADATA_KEY = "apl_guard"
_DIGEST_KEY = "apl_guard_digest"


class Prefix:
    """Learned vectors with their metadata.

    Args:
        vectors: Slot → tensor of shape (N, D). The values are copied, as float32.
        metadata: What is known about them.

    Raises:
        PrefixInvalid: Slots, shapes or values do not fit the metadata.

    Example:
        >>> import torch
        >>> from datetime import UTC, datetime
        >>> from apl_guard.encoder.fingerprint import Fingerprint
        >>> of = Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)
        >>> metadata = PrefixMetadata(name="demo", n=2, widths={"text_encoder": 4},
        ...     fingerprints={"text_encoder": of}, created=datetime(2026, 1, 1, tzinfo=UTC))
        >>> prefix = Prefix({"text_encoder": torch.ones(2, 4)}, metadata)
        >>> prefix.n, prefix.vectors["text_encoder"].shape
        (2, torch.Size([2, 4]))
    """

    def __init__(self, vectors: Mapping[str, Tensor | npt.ArrayLike], metadata: PrefixMetadata) -> None:
        self._arrays = {slot: _as_array(values) for slot, values in sorted(vectors.items())}
        self.metadata = metadata
        _check_arrays(self._arrays, metadata, where="vectors")
        self.digest = _digest(metadata.canonical_json(), self._arrays)

    def __repr__(self) -> str:
        return f"Prefix({self.metadata.name!r}, n={self.n}, digest={self.digest[:12]!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Prefix, (self._arrays, self.metadata)

    @property
    def n(self) -> int:
        """The number of vectors, N."""
        return self.metadata.n

    @property
    def embedding_name(self) -> str:
        """The name of its export as an embedding. Bound to the content, so that a server cannot have another."""
        return f"apl-{self.digest[:16]}"

    @cached_property
    def vectors(self) -> Mapping[str, Tensor]:
        """Slot → tensor of shape (N, D), float32."""
        import torch

        return MappingProxyType({slot: torch.from_numpy(a.copy()) for slot, a in self._arrays.items()})

    def first(self, n: int) -> Prefix:
        """The first n vectors, as a prefix of its own.

        Args:
            n: How many, 1 to N.

        Raises:
            ValueError: There are not as many.
        """
        if not 1 <= n <= self.n:
            raise ValueError(f"found n = {n}; expected 1 to {self.n}")
        if n == self.n:
            return self
        metadata = self.metadata.model_copy(update={"n": n})
        return Prefix({slot: values[:n] for slot, values in self._arrays.items()}, metadata)

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> Prefix:
        """Read a prefix.

        Args:
            path_or_name: A prefix folder or file; or `minifaces`, the prefix that is shipped; or a name in
                the registry.

        Raises:
            PrefixInvalid: There is none, or it is damaged. The message holds the path and the field.
        """
        path = find_path(path_or_name)
        file = path / FILE_NAME if path.is_dir() else path
        return cls.parse(read_file(file), where=file)

    @classmethod
    def parse(cls, content: bytes, where: str | os.PathLike[str]) -> Prefix:
        """Read a prefix from the bytes of its file.

        Args:
            content: The bytes.
            where: Where they come from, for messages.

        Raises:
            PrefixInvalid: They are not exactly what `save` writes.
        """
        where = Path(where)
        arrays, header = parse_tensors(content, where)
        if header.keys() > {_METADATA_KEY, _DIGEST_KEY}:
            raise PrefixInvalid(
                "more than the metadata of apl-guard; expected a file from `apl-guard train`; of an exported one, "
                "`apl-guard prefix import` makes a prefix again",
                where=where,
            )
        return cls.from_parts(arrays, header, where)

    @classmethod
    def from_parts(
        cls, arrays: Mapping[str, npt.NDArray[np.float32]], header: Mapping[str, str], where: str | os.PathLike[str]
    ) -> Prefix:
        """Put a prefix together from what was read of it, and check that the parts belong to each other.

        Args:
            arrays: Slot → array of shape (N, D).
            header: What `header` gave.
            where: Where it comes from, for messages.

        Raises:
            PrefixInvalid: They do not.
        """
        where = Path(where)
        if not header.keys() >= {_METADATA_KEY, _DIGEST_KEY}:
            raise PrefixInvalid("no metadata of apl-guard; expected a file from `apl-guard train`", where=where)
        metadata = parse_model(PrefixMetadata, header[_METADATA_KEY], "metadata", where)
        # One text for one content, or two files with one digest would differ.
        if metadata.canonical_json() != header[_METADATA_KEY]:
            raise PrefixInvalid("the metadata is not in its canonical form", where=where)
        _check_arrays(arrays, metadata, where)
        prefix = cls(arrays, metadata)
        if prefix.digest != header[_DIGEST_KEY]:
            raise PrefixInvalid(
                "the digest does not fit the content: the file was changed or damaged; get it again", where=where
            )
        return prefix

    def check_norms(self, slot: str, largest: float) -> None:
        """Make sure that the vectors are not far larger than the token embeddings that they stand among.

        Args:
            slot: The slot.
            largest: The largest norm of a token embedding of the text encoder in it.

        Raises:
            PrefixInvalid: One is more than 16 times as large.
        """
        found = float(np.linalg.norm(self._arrays[slot].astype(np.float64), axis=1).max())
        if not found <= MAX_NORM_RATIO * largest:
            raise PrefixInvalid(
                f"'{slot}' holds a vector of norm {found:.4g}, expected at most {MAX_NORM_RATIO} times the largest "
                f"token embedding of this text encoder, {largest:.4g}; it was damaged, or trained for another one",
                where=self.metadata.name,
            )

    def save(self, folder: str | os.PathLike[str], card: str | None = None) -> Path:
        """Write the prefix folder. It appears whole or not at all.

        Args:
            folder: Where. Parents are made. In a folder that exists, other files are left alone.
            card: Text of `card.md`.

        Returns:
            The folder.

        Raises:
            PrefixInvalid: It is larger than a prefix file may be.
            StorageFailed: The folder could not be written, such as on a full disk.
        """
        files = {} if card is None else {CARD_NAME: card.encode()}
        # Last, because a folder counts as a prefix as soon as this file is there.
        files[FILE_NAME] = self.to_bytes()
        return write_folder(Path(folder), files)

    def header(self) -> dict[str, str]:
        """What stands in the header of its file: the metadata, and the digest over them and the vectors."""
        return {_METADATA_KEY: self.metadata.canonical_json(), _DIGEST_KEY: self.digest}

    def to_bytes(self) -> bytes:
        """The content of its file, which `parse` reads; equal prefixes have equal bytes.

        Raises:
            PrefixInvalid: It is larger than a prefix file may be.
        """
        from safetensors.numpy import save

        content = _ordered(save(self._arrays, self.header()))
        if len(content) > MAX_FILE_BYTES:
            raise PrefixInvalid(f"{len(content)} bytes, expected ≤ {MAX_FILE_BYTES}: fewer vectors", where="vectors")
        return content


def _ordered(content: bytes) -> bytes:
    """A safetensors file whose header is sorted; the library writes the entries of `__metadata__` in any order."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # values begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _as_array(values: Any) -> npt.NDArray[np.float32]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.array(values, dtype="<f4", order="C")  # a copy: the digest must stay true


def _check_arrays(arrays: Mapping[str, npt.NDArray[np.float32]], metadata: PrefixMetadata, where: str | Path) -> None:
    if arrays.keys() != metadata.widths.keys():
        found = printable(str(sorted(arrays)))
        message = f"found tensors for {found}, expected them for {sorted(metadata.widths)}"
        raise PrefixInvalid(message, where=where)
    for slot, array in arrays.items():
        expected = (metadata.n, metadata.widths[slot])
        if array.shape != expected:
            raise PrefixInvalid(f"'{slot}' has shape {array.shape}, expected {expected}", where=where)
        if not np.isfinite(array).all():
            raise PrefixInvalid(f"'{slot}' holds values that are not finite", where=where)


def _digest(metadata_json: str, arrays: Mapping[str, npt.NDArray[np.float32]]) -> str:
    digest = hashlib.sha256(b"apl-guard prefix 1\0")
    digest.update(struct.pack("<Q", len(metadata_json.encode())) + metadata_json.encode())
    for slot, array in sorted(arrays.items()):
        digest.update(json.dumps([slot, list(array.shape)]).encode() + array.tobytes())
    return digest.hexdigest()
