"""Text encoders of the kinds CLIP, T5 and BERT with their tokenizers: the true classes, tiny, with random weights and
vocabularies made here. Nothing is downloaded."""

from __future__ import annotations

import string
from typing import Any

from .vocabularies import from_files, from_merges, from_pieces

__all__ = ["WIDTH", "bert", "byt5", "byte_letters", "clip", "loud", "m_clip", "slots", "t5", "tiny_tokenizer"]

WIDTH = 32
_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
_MERGES = [
    ("p", "h"),
    ("ph", "o"),
    ("t", "o</w>"),
    ("pho", "to</w>"),
    ("o", "f</w>"),
    ("a", "n</w>"),
    ("m", "an</w>"),
]


def slots(*encoders: tuple[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Text encoders and their tokenizers under the names that a pipeline has for them.

    Example:
        >>> slots(("a", "its tokenizer"), ("b", "its own"))
        {'text_encoder': 'a', 'tokenizer': 'its tokenizer', 'text_encoder_2': 'b', 'tokenizer_2': 'its own'}
    """
    named: dict[str, Any] = {}
    for number, (text_encoder, tokenizer) in enumerate(encoders, 1):
        suffix = "" if number == 1 else f"_{number}"
        named |= {f"{prefix}text_encoder{suffix}": text_encoder, f"{prefix}tokenizer{suffix}": tokenizer}
    return named


def tiny_tokenizer(padding: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer with a vocabulary of bytes and a few merges, laid out as the original is.

    Args:
        padding: The padding token; "!" for the second text encoder of Stable Diffusion XL.

    Example:
        >>> tiny_tokenizer()("a photo of").input_ids
        [519, 320, 515, 516, 520]
    """
    from transformers import AddedToken

    letters = list(byte_letters())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in _MERGES)]
    ids = {token: i for i, token in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    # The files of the original say of both that they are normalised, so they are found in capitals as well.
    start, end = (AddedToken(token, normalized=True, special=True) for token in ("<|startoftext|>", "<|endoftext|>"))
    options = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": padding}
    return from_merges("CLIPTokenizer", ids, _MERGES, **options, model_max_length=77)


def byte_letters() -> list[str]:
    """One printable character for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def clip(cls: str = "CLIPTextModel", padding: str = "<|endoftext|>", eos: int | None = None, **config: Any) -> Any:
    """A CLIP text model and its tokenizer.

    Args:
        cls: `CLIPTextModel` or `CLIPTextModelWithProjection`.
        padding: The padding token.
        eos: The end token in the configuration; the checkpoints of old carry a wrong one, 2.
        config: More of the configuration.
    """
    import transformers

    tokenizer = tiny_tokenizer(padding)
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    made = transformers.CLIPTextConfig(
        **(shape | {"projection_dim": WIDTH} | config),
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    return loud(getattr(transformers, cls)(made)), tokenizer


def t5(cls: str = "T5", length: int = 512, **config: Any) -> Any:
    """A T5 or UMT5 encoder and its tokenizer."""
    import transformers

    pieces = _pieces(["<pad>", "</s>", "<unk>"], [f"<extra_id_{i}>" for i in range(9, -1, -1)])
    tokenizer = from_pieces("T5TokenizerFast", pieces, "$A </s>", extra_ids=10, model_max_length=length)
    made = getattr(transformers, f"{cls}Config")(**(_T5 | config), vocab_size=len(tokenizer))
    return loud(getattr(transformers, f"{cls}EncoderModel")(made)), tokenizer


def byt5() -> Any:
    """A T5 of bytes and its tokenizer, which is written in Python."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer: Any = ByT5Tokenizer()
    return loud(T5EncoderModel(T5Config(**_T5, vocab_size=len(tokenizer)))), tokenizer


def m_clip() -> Any:
    """A multilingual CLIP and its tokenizer, as in Kandinsky 2.1."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    pieces = _pieces(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    tokenizer = from_pieces("XLMRobertaTokenizerFast", pieces, "<s> $A </s>", model_max_length=512)
    made = MCLIPConfig(
        numDims=WIDTH,
        transformerDimSize=WIDTH,
        imageDimSize=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
    )
    return loud(MultilingualCLIP(made)), tokenizer


def _pieces(first: list[str], last: list[str]) -> list[tuple[str, float]]:
    """Pieces of sentencepiece between special tokens, with their scores."""
    letters = string.ascii_letters + string.digits + string.punctuation
    words = ["▁a", "▁of", "▁photo", "▁man", "er", "in"]
    pieces = [("▁", -2.0), *((letter, -4.0) for letter in letters), *((word, -3.0) for word in words)]
    return [*((token, 0.0) for token in first), *pieces, *((token, 0.0) for token in last)]


def bert() -> Any:
    """A BERT and its tokenizer, as in Hunyuan-DiT."""
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "man"]
    words += [*string.ascii_lowercase[1:], *(f"##{c}" for c in string.ascii_lowercase), *string.punctuation]
    tokenizer = from_files("BertTokenizer", {"vocab.txt": "".join(word + "\n" for word in words)}, model_max_length=77)
    shape = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = BertConfig(**shape, vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return loud(BertModel(made)), tokenizer


def loud(model: Any) -> Any:
    """Weights so large that prompts differ clearly; the usual initialisation is very small."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return model.eval()
