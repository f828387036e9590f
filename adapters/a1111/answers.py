"""What AUTOMATIC1111's answers say about checkpoints, embeddings and how it reads prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from apl_guard.adapters.remote.http_client import RemoteAnswerInvalid

__all__ = ["answer_of", "is_checkpoint", "reads_break", "stem", "unreported"]

# A value that holds commas or colons, such as a prompt, stands in quotes. What is no pair goes on to the next comma.
_PAIRS = re.compile(r'\s*+(?:(\w[\w \-/]++):\s*+("(?:\\.|[^\\"])*+"(?=,|$)|[^,]*+)|[^,]*+)(?:,|$)')


def stem(title: str) -> str:
    """The name of a checkpoint without ending and hash: servers show it in all these forms."""
    return re.sub(r"(\.(safetensors|ckpt|gguf))?( \[[0-9a-f]+\])?$", "", title)


def is_checkpoint(wanted: str, found: tuple[str, str]) -> bool:
    """Whether a checkpoint, as its hash (of any length) and name, is the one that is wanted.

    The server names it with its folder in its options, and without it in what it says about a picture.

    Example:
        >>> is_checkpoint("sd/v1-5.safetensors", ("", "v1-5")), is_checkpoint("sd/v1-5", ("", "other/v1-5"))
        (True, False)
    """
    checkpoint_hash, name = (each.lower() for each in found)
    wanted = wanted.lower()
    shorter, longer = sorted((checkpoint_hash, wanted), key=len)
    return (len(shorter) >= 8 and longer.startswith(shorter)) or (bool(name) and _is_name(stem(wanted), name))


def _is_name(wanted: str, found: str) -> bool:
    wanted_parts, found_parts = (re.split(r"[\\/]", name) for name in (wanted, found))
    has_folders = len(wanted_parts) > 1 and len(found_parts) > 1
    return wanted_parts == found_parts if has_folders else wanted_parts[-1] == found_parts[-1]


def unreported(info: Mapping[str, Any], images: int, embedding: str) -> str | None:
    """What an answer lacks to show that an embedding was used for each of its pictures, or None.

    Example:
        >>> record = 'a cat\\nSteps: 1, TI hashes: "apl-0: 0123, cat: 4567"'
        >>> unreported({"infotexts": [record]}, 1, "apl-0"), unreported({"infotexts": [record]}, 1, "apl-1")
        (None, "does not report 'apl-1' as used for each image")
    """
    records = info.get("infotexts")
    records = records if isinstance(records, list) else []
    if len(records) < images:  # a grid has a record, too
        return (
            f"gave {images} images and records of {len(records)}; expected one of each. Switch off what adds images, "
            "such as masks or the maps of ControlNet"
        )
    if not records or any(embedding not in _embeddings_in(record) for record in records):
        return f"does not report '{embedding}' as used for each image"
    return None


def _embeddings_in(record: Any) -> list[str]:
    """The embeddings that the record of a picture names as used, from its last line of `key: value, …`."""
    pairs = _PAIRS.findall(record.rpartition("\n")[2]) if isinstance(record, str) else ()
    names = ", ".join(value.strip('"') for key, value in pairs if key in ("TI", "TI hashes"))
    return [part.partition(":")[0].strip() for part in names.split(",")]


def reads_break(options: Mapping[str, Any]) -> bool:
    """Whether the server cuts prompts at `BREAK`: not where its user switched the syntax of weights off.

    Example:
        >>> reads_break({"emphasis": "Original"}), reads_break({"emphasis": "None"})
        (True, False)
    """
    return options.get("emphasis") != "None" and options.get("enable_emphasis") is not False


def answer_of(answer: Any, key: str) -> dict[str, Any]:
    """What stands under a key of an answer.

    Raises:
        RemoteAnswerInvalid: The answer is of another shape.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get(key), dict):
        raise RemoteAnswerInvalid(f"the answer lacks '{key}'; is this AUTOMATIC1111's API?")
    return dict(answer[key])
