"""How people are added: how many drawings of each, how many steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of all three ways."""

    drawings: int = 12
    """Of each person."""
    group: int = 10
    """People whom one DreamBooth run, or one LoRA, adds at once."""
    prior: int = 64
    """Pictures that the model draws beforehand, of nobody, and shall go on drawing so."""
    batch: int = 24
    """Drawings in a step."""
    prior_batch: int = 8
    """Pictures of the prior in a step."""
    dreambooth_steps: int = 200
    dreambooth_rate: float = 8e-4
    lora_steps: int = 240
    lora_rate: float = 4e-3
    lora_rank: int = 16
    merge_scale: float = 0.5
    """How strongly a LoRA is fused into the model that `transfer` calls merged."""
    inversion_steps: int = 1600
    inversion_rate: float = 2e-2
    inversion_descriptions: int = 3
    """How often the description is said that a word begins as."""
    inversion_repeats: int = 4
    """Noise levels at which each drawing of a step is looked at."""

    @classmethod
    def tiny(cls) -> Recipe:
        """Everything once, to see that it runs; nobody is learned by it."""
        return cls(
            drawings=2,
            prior=4,
            batch=2,
            prior_batch=2,
            dreambooth_steps=2,
            lora_steps=2,
            lora_rank=2,
            inversion_steps=2,
            inversion_descriptions=1,
            inversion_repeats=1,
        )
