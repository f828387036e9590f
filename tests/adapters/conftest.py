"""The definition of injection, for all adapters."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from by_hand import clip_by_hand


@pytest.fixture(scope="session")
def prompt_embeds_by_hand():
    """Prompt embeds of shape (B, L, D), computed layer by layer and without the code under test, of

    [start, P₁ … P_N, the user's tokens cut at their end, end, padding]
    """

    def compute(text_encoder, tokenizer, prompts, vectors, length=77):
        return clip_by_hand(text_encoder, tokenizer, prompts, vectors, length)["last"]

    return compute
