"""The text that stands for the listed people where a method steers away from a text.

A prompt holds 75 tokens, a list of names may need thousands. Two ways out:

    list   as many names of the list as a prompt holds, in the order of the list, whatever is asked for
    named  of each prompt, the listed names that stand in it; nothing where none does
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from apl_guard.trainer.peers.peer import Files

Scope = Literal["list", "named"]
FILE = "concept.json"


def concept_file(scope: Scope, tokenizer: Any, names: Iterable[str]) -> Files:
    """What has to be shipped: the names."""
    kept = fitting(tokenizer, names) if scope == "list" else list(names)
    return {FILE: json.dumps({"scope": scope, "names": kept}).encode()}


def concept_of(files: Files) -> Callable[[str], str]:
    """Prompt → the text to steer away from; empty where there is nothing to steer away from.

    Example:
        >>> concept = concept_of({FILE: b'{"scope": "named", "names": ["Mara Voss", "Bo Tarn"]}'})
        >>> concept("a photo of bo tarn"), concept("a red car")
        ('Bo Tarn', '')
    """
    content = json.loads(files[FILE])
    names: list[str] = content["names"]
    whole = ", ".join(names)
    patterns = [(name, re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)) for name in names]

    def concept(text: str) -> str:
        if content["scope"] == "list":
            return whole
        return ", ".join(name for name, pattern in patterns if pattern.search(text))

    return concept


def fitting(tokenizer: Any, names: Iterable[str]) -> list[str]:
    """As many names, from the first on, as one prompt holds when they are joined by commas."""
    kept: list[str] = []
    for name in names:
        ids = tokenizer(", ".join([*kept, name]))["input_ids"]
        if len(ids) > tokenizer.model_max_length:
            break
        kept.append(name)
    return kept
