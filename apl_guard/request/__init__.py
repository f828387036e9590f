"""One call of a pipe, read before anything runs: what enters the generation, through which channel, for whom."""

from apl_guard.request.reading import Reading
from apl_guard.request.request import (
    MAX_CHARACTERS,
    MAX_TEXTS,
    PROMPT_CHANNELS,
    TEXT_CHANNELS,
    Channel,
    GenerationRequest,
    argument_name,
    texts,
)

__all__ = [
    "MAX_CHARACTERS",
    "MAX_TEXTS",
    "PROMPT_CHANNELS",
    "TEXT_CHANNELS",
    "Channel",
    "GenerationRequest",
    "Reading",
    "argument_name",
    "texts",
]
