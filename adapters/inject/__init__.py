"""How a prefix enters a text encoder. No other room knows this.

`injection` puts the vectors in, `prefix_tokenizer` makes room for them, `origin` tells prompts from other texts on
the way between the two, and `received` counts what arrived.
"""

from .injection import embed, encode_prompts, injected, run_encoder, tokenize_with_prefix

__all__ = ["embed", "encode_prompts", "injected", "run_encoder", "tokenize_with_prefix"]
