"""What a pipeline makes of a prompt before it tokenizes it: some take markup, addresses and broken letters out of it.

`M&#97;ra` is `mara` for them, and `Mara @x Voss` is `mara voss`. The pipe's own function is asked, so that what is
looked at is what its text encoder reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.utils import is_bs4_available, is_ftfy_available

from apl_guard.request import Reading
from apl_guard.request.canonical import canonical
from apl_guard.request.spelling import letters_of

__all__ = ["MOST_CHARACTERS", "cleaner_of", "readings_of"]

MOST_CHARACTERS = 20_000
"""Of a text that is cleaned before anything was decided about it: cleaning takes time that grows with its square."""

Cleaner = Callable[[str], str]
Readings = Callable[[str], Sequence[Reading]]


def cleaner_of(pipe: Any, arguments: Mapping[str, Any]) -> Cleaner | None:
    """How a pipe cleans the prompts of a call, or None where it leaves them as they are.

    Args:
        pipe: The pipe.
        arguments: Argument → value, defaults included.
    """
    cleaner: Cleaner | None
    if hasattr(pipe, "_clean_caption"):
        # Without these it warns, and cleans nothing.
        is_cleaned = arguments.get("clean_caption") and is_bs4_available() and is_ftfy_available()
        return (lambda text: str(pipe._text_preprocessing(text, clean_caption=True)[0])) if is_cleaned else None
    if (preprocessor := getattr(pipe, "text_preprocessor", None)) is not None:
        cleaner = preprocessor.basic_clean if arguments.get("skip_text_cleaning") else preprocessor.clean_text
        return cleaner
    modules = [sys.modules.get(base.__module__) for base in type(pipe).__mro__]
    cleaner = next((clean for module in modules if (clean := getattr(module, "prompt_clean", None))), None)
    split = next((split for module in modules if (split := getattr(module, "split_quotation", None))), None)
    if cleaner is None and split is not None:
        # LongCat-Image: words with an apostrophe change places with a word of its own, which a user may write as well.
        return lambda text: "".join(part for part, _ in split(text))
    return cleaner


def readings_of(cleaner: Cleaner | None, as_tokenized: Callable[[str], Sequence[Reading]]) -> Readings:
    """What else a text says, for `GenerationRequest.readings`: what a pipe makes of it, and what its tokenizers read in
    that; each if it has other letters.

    Args:
        cleaner: From `cleaner_of`.
        as_tokenized: Says what each tokenizer reads in a text.
    """

    def readings(text: str) -> Sequence[Reading]:
        cleaned = text if cleaner is None else canonical(cleaner(text))
        found = [Reading(cleaned), *as_tokenized(cleaned)]
        # Places in a cleaned text are none in the text.
        known = [Reading(canonical(x.text)) if x.places is None or cleaned != text else x for x in found]
        letters = letters_of(text)
        return [each for each in dict.fromkeys(known) if letters_of(each.text) != letters]

    return readings
