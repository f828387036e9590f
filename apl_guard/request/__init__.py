"""One call of a pipe, read before anything runs: what enters the generation, through which channel, for whom."""

from apl_guard.request.request import PROMPT_CHANNELS, TEXT_CHANNELS, Channel, GenerationRequest, texts

__all__ = ["PROMPT_CHANNELS", "TEXT_CHANNELS", "Channel", "GenerationRequest", "texts"]
