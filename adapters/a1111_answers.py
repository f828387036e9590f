"""What AUTOMATIC1111's answers say about checkpoints and embeddings."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["embeddings_in", "is_checkpoint", "stem"]

# A value that holds commas or colons, such as a prompt, stands in quotes.
_PAIRS = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def stem(title: str) -> str:
    """The name of a checkpoint without ending and hash: servers show it in all these forms."""
    return re.sub(r"(\.(safetensors|ckpt))?( \[[0-9a-f]+\])?$", "", title)


def is_checkpoint(wanted: str, found: tuple[str, str]) -> bool:
    """Whether a checkpoint, as its hash (of any length) and name, is the one that is wanted."""
    checkpoint_hash, name = (each.lower() for each in found)
    wanted = wanted.lower()
    shorter, longer = sorted((checkpoint_hash, wanted), key=len)
    return (len(shorter) >= 8 and longer.startswith(shorter)) or (bool(name) and stem(wanted) == name)


def embeddings_in(record: Any) -> list[str]:
    """The embeddings that the record of a picture names as used, from its last line of `key: value, …`."""
    pairs = _PAIRS.findall(str(record).rpartition("\n")[2])
    names = ", ".join(value.strip('"') for key, value in pairs if key in ("TI", "TI hashes"))
    return [part.partition(":")[0].strip() for part in names.split(",")]
