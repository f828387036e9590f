"""For tests of code that uses apl-guard: pipes and prefixes, made in memory in a second.

All are real: classes of diffusers and transformers with random weights, so everything but the picture is as in
production.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from apl_guard.backend import adapter_for
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.encoder.traits import traits_of
from apl_guard.prefix import Prefix, PrefixMetadata

from .pipes import FAMILIES, build
from .text import tiny_tokenizer
from .variants import VARIANTS, pictures_for, tiny_variant

__all__ = ["FAMILIES", "VARIANTS", "pictures_for", "random_prefix", "tiny_pipe", "tiny_tokenizer", "tiny_variant"]


def tiny_pipe(seed: int = 0, family: str = "stable_diffusion") -> Any:
    """A pipeline with random weights that draws 32×32 pixels.

    Args:
        seed: Other seeds give other weights, so other fingerprints.
        family: A key of `FAMILIES`.
    """
    return build(family, seed)


def random_prefix(
    pipe: Any, n: int = 10, seed: int = 0, name: str = "random", slots: Collection[str] | None = None
) -> Prefix:
    """A prefix of random vectors that fits the text encoders of a pipe.

    Args:
        pipe: The pipe.
        n: Number of vectors.
        seed: Other seeds give other vectors.
        name: Its name.
        slots: For which text encoders; None for all of them.
    """
    import torch

    from apl_guard.adapters.diffusers.view import encoders_of

    generator = torch.Generator().manual_seed(seed)
    encoders: dict[str, Any] = {e.slot: e for e in encoders_of(pipe) if slots is None or e.slot in slots}
    found = adapter_for(pipe).fingerprints() or {}
    widths = {slot: token_embedding(e.text_encoder).embedding_dim for slot, e in encoders.items()}
    vectors = {slot: torch.randn(n, width, generator=generator) for slot, width in widths.items()}
    metadata = PrefixMetadata(
        name=name,
        n=n,
        widths=widths,
        fingerprints={slot: found[slot] for slot in encoders},
        traits={slot: traits_of(e.text_encoder, e.tokenizer) for slot, e in encoders.items()},
        created=datetime.now(UTC),
    )
    return Prefix(vectors, metadata)
