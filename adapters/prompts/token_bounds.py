"""At most how many tokens the tokenizer of a server finds in a text.

What it finds beyond them would stand in a chunk without the prefix.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from .mended_readings import longest_forms

__all__ = ["byte_bound", "token_bound"]


def byte_bound(text: str) -> int:
    """At most how many tokens a text can have, whatever the vocabulary: a token stands for a byte or more.

    Example:
        >>> byte_bound("a cat"), byte_bound("é"), byte_bound("\x85")
        (4, 2, 3)
    """
    return sum(map(_most_bytes, text))


def token_bound(text: str, tokenizer: Any) -> int:
    """The same where the vocabulary of the server is known, but not which programs make words of a text before.

    Args:
        text: The text.
        tokenizer: Of transformers.
    """
    return max(
        len(tokenizer(form, add_special_tokens=False).input_ids) for form in dict.fromkeys((text, *longest_forms(text)))
    )


@lru_cache(maxsize=10_000)
def _most_bytes(letter: str) -> int:
    # The others of what Python takes for white space are signs to some tokenizer.
    if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f\x85":
        return 0
    # Tokenizers of CLIP mend, normalise and lower the text, each of which may lengthen it.
    forms = {form for each in (letter, *longest_forms(letter)) for form in (each, unicodedata.normalize("NFC", each))}
    return max(len(form.encode("utf-8", "surrogatepass")) for each in forms for form in (each, each.lower()))
