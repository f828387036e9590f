"""At most how many tokens the tokenizer of a server finds in a text.

What it finds beyond them would stand in a chunk without the prefix.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from .mended_readings import longest_forms

__all__ = ["byte_bound", "most_tokens"]


def byte_bound(text: str) -> int:
    """At most how many tokens a text can have, whatever the vocabulary: a token stands for a byte or more.

    Example:
        >>> byte_bound("a cat"), byte_bound("é"), byte_bound("\x85")
        (4, 2, 3)
    """
    return sum(map(_most_bytes, text))


def most_tokens(text: str, tokenizer: Any | None, syntax: str) -> int:
    """At most how many tokens a text has, where it is not known which programs make words of it before.

    Args:
        text: The text.
        tokenizer: That of the server's text encoder, from transformers, if there is one.
        syntax: The letters that the server may not take for text.
    """
    # The server's tokenizer may read entities of HTML, and so find more tokens in them.
    if tokenizer is None or any(letter in text for letter in f"{syntax}&") or any(map(_is_new, text)):
        return byte_bound(text)
    return max(
        len(tokenizer(form, add_special_tokens=False).input_ids) for form in dict.fromkeys((text, *longest_forms(text)))
    )


@lru_cache(maxsize=10_000)
def _is_new(letter: str) -> bool:
    """Whether it is a letter or digit of Unicode 4 or later. Whether a tokenizer takes it for one, and what its small
    letter is, depends on the Unicode that it knows, and that of the server may be older."""
    is_old = letter.isascii() or unicodedata.ucd_3_2_0.category(letter) != "Cn"
    return not is_old and unicodedata.category(letter)[0] in "LNC"


@lru_cache(maxsize=10_000)
def _most_bytes(letter: str) -> int:
    # The others of what Python takes for white space are signs to some tokenizer.
    if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f\x85":
        return 0
    # Tokenizers of CLIP mend, normalise and lower the text, each of which may lengthen it.
    forms = {form for each in (letter, *longest_forms(letter)) for form in (each, unicodedata.normalize("NFC", each))}
    return max(len(form.encode("utf-8", "surrogatepass")) for each in forms for form in (each, each.lower()))
