"""The definition of injection, for all adapters."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.masking_utils import create_causal_mask

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def prompt_embeds_by_hand():
    """Prompt embeds of shape (B, L, D), computed layer by layer and without the code under test, of

    [start, P₁ … P_N, the user's tokens cut at their end, end, padding]
    """
    return _prompt_embeds_by_hand


@torch.no_grad()
def _prompt_embeds_by_hand(text_encoder, tokenizer, prompts, vectors, length=77):
    inner = getattr(text_encoder, "text_model", text_encoder)
    table = inner.embeddings.token_embedding.weight
    rows = []
    for prompt in prompts:
        user = tokenizer(prompt, add_special_tokens=False).input_ids[: length - len(vectors) - 2]
        end = [tokenizer.eos_token_id]
        padding = [tokenizer.pad_token_id] * (length - len(vectors) - len(user) - 2)
        after = torch.tensor(user + end + padding)
        rows.append(torch.cat([table[tokenizer.bos_token_id][None], vectors.to(table), table[after]]))
    hidden = torch.stack(rows) + inner.embeddings.position_embedding.weight[:length]
    mask = create_causal_mask(
        config=text_encoder.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    for layer in inner.encoder.layers:
        output = layer(hidden, mask, is_causal=True)
        hidden = output[0] if isinstance(output, tuple) else output
    return inner.final_layer_norm(hidden)
