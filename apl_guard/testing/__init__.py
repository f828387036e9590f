"""For tests of code that uses apl-guard: a pipe and a prefix, made in memory in a second.

Both are real: classes of diffusers and transformers with random weights, so everything but the picture is as
in production.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from apl_guard.fingerprint import fingerprint
from apl_guard.prefix import Prefix, PrefixMetadata
from apl_guard.traits import traits_of

__all__ = ["random_prefix", "tiny_pipe", "tiny_tokenizer"]

_WIDTH = 32
_MERGES = [
    ("p", "h"),
    ("ph", "o"),
    ("t", "o</w>"),
    ("pho", "to</w>"),
    ("o", "f</w>"),
    ("a", "n</w>"),
    ("m", "an</w>"),
]


def tiny_tokenizer() -> Any:
    """A CLIP tokenizer with a vocabulary of bytes and a few merges, laid out as the original is.

    Example:
        >>> tiny_tokenizer()("a photo of").input_ids
        [519, 320, 515, 516, 520]
    """
    from transformers import CLIPTokenizer

    letters = list(_byte_letters())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in _MERGES)]
    merges: Any = _MERGES  # pairs, as the library wants them whatever it says
    ids = {token: i for i, token in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def tiny_pipe(seed: int = 0) -> Any:
    """A `StableDiffusionPipeline` with random weights that draws 32×32 pixels.

    Args:
        seed: Other seeds give other weights, so other fingerprints.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=_WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
        )
        text_encoder = CLIPTextModel(text_config)
        with torch.no_grad():
            for weight in text_encoder.parameters():
                # The usual initialisation is so small that prompts hardly differ.
                if weight.ndim == 2:
                    weight.normal_(std=0.3)
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_prefix(pipe: Any, n: int = 10, seed: int = 0, name: str = "random") -> Prefix:
    """A prefix of random vectors that fits the text encoder of a pipe.

    Args:
        pipe: The pipe.
        n: Number of vectors.
        seed: Other seeds give other vectors.
        name: Its name.
    """
    import torch

    width = pipe.text_encoder.get_input_embeddings().embedding_dim
    vectors = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    metadata = PrefixMetadata(
        name=name,
        n=n,
        widths={"text_encoder": width},
        fingerprints={"text_encoder": fingerprint(pipe.text_encoder, pipe.tokenizer)},
        traits={"text_encoder": traits_of(pipe.text_encoder, pipe.tokenizer)},
        created=datetime.now(UTC),
    )
    return Prefix({"text_encoder": vectors}, metadata)


def _byte_letters() -> list[str]:
    """One printable character for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
