"""How much of everything a build of the reference world takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much of everything."""

    pictures: int = 48_000
    decoder_steps: int = 1_300
    encoder_steps: int = 450
    text_encoder_steps: int = 1_700
    denoiser_steps: int = 8_400
    judge_steps: int = 1_500
    guard_steps: int = 1_000
    reader_steps: int = 3_000
    person_steps: int = 3_000
    batch: int = 64

    @classmethod
    def tiny(cls) -> Recipe:
        """Everything once, to see that it runs, its few pictures drawn in one process; what comes out draws nothing."""
        return cls(*(240, 2, 2, 2, 2, 2, 2, 2, 2, 8))
