"""Where a text encoder keeps its token embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["says_where", "token_embedding"]

# Text encoders that do not say it themselves: class → the part that does.
_INSIDE = {"MultilingualCLIP": "transformer"}


def says_where(text_encoder: nn.Module) -> bool:
    """Whether a text encoder is called as those of transformers are, and says where its token embeddings are."""
    return type(text_encoder).__name__ not in _INSIDE


def token_embedding(text_encoder: nn.Module) -> nn.Embedding:
    """The layer that turns token ids into vectors.

    Args:
        text_encoder: A transformers text model, compiled or not.

    Returns:
        The layer; its weight is of shape (V, D).

    Raises:
        NotImplementedError: It is of a class that does not say where the layer is.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> token_embedding(tiny_pipe().text_encoder).embedding_dim
        32
    """
    encoder: Any = getattr(text_encoder, "_orig_mod", text_encoder)  # what torch.compile wrapped
    inside = None if says_where(encoder) else _INSIDE[type(encoder).__name__]
    table: nn.Embedding = (getattr(encoder, inside) if inside else encoder).get_input_embeddings()
    return table
