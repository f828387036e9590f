"""Prefixes as embeddings of other programs, and back.

A prefix is what diffusers, AUTOMATIC1111 and ComfyUI call a textual inversion or an embedding of several
vectors. So it can be handed to them as a file, and what others trained can be taken over.
"""

from apl_guard.exchange.embedding import Embedding, bind, embedding_keys, from_embedding, to_embedding
from apl_guard.exchange.pickled import convert_pickle, is_pickle

__all__ = [
    "Embedding",
    "bind",
    "convert_pickle",
    "embedding_keys",
    "from_embedding",
    "is_pickle",
    "to_embedding",
]
