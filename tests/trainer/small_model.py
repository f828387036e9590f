"""A pipeline of the layout of Stable Diffusion 1.5 with narrow layers and random weights.

Run as a program it writes the pipeline to a folder: `python small_model.py FOLDER`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from apl_guard.testing.vocabularies import from_merges

_MERGES = (
    ("l", "o"),
    ("p", "h"),
    ("ph", "o"),
    ("t", "o</w>"),
    ("pho", "to</w>"),
    ("o", "f</w>"),
    ("a", "n</w>"),
)


def small_tokenizer() -> Any:
    """A tokenizer of CLIP's layout: bytes, bytes at word ends, merges, start and end token last."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(byte) for byte in shown] + [chr(256 + k) for k in range(len(hidden))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in _MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: k for k, word in enumerate(words)}
    return from_merges("CLIPTokenizer", vocab, _MERGES, pad_token="<|endoftext|>", model_max_length=77)


def small_pipe(prediction_type: str = "epsilon", seed: int = 0, shallow: bool = False) -> StableDiffusionPipeline:
    """The pipeline: four levels of blocks, cross-attention on three of them, a VAE that reduces eightfold.

    A shallow one has two levels of one block each: not the true layout, but three times as fast.
    """
    torch.manual_seed(seed)
    tokenizer = small_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=0,
            eos_token_id=2, pad_token_id=1, projection_dim=32,
        )
    )  # fmt: skip
    for parameter in text_encoder.parameters():
        if parameter.ndim == 2:  # the usual initial weights are too small to tell prompts apart
            torch.nn.init.normal_(parameter, std=0.3)
    layout: dict[str, Any] = {"block_out_channels": (8, 16, 32, 32)}
    if shallow:
        layout = {
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    unet = UNet2DConditionModel(
        sample_size=8, norm_num_groups=4, cross_attention_dim=32, attention_head_dim=4, **layout
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    pipe = StableDiffusionPipeline(
        **{name: part.eval() for name, part in parts.items()}, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    small_pipe().save_pretrained(sys.argv[1])
