"""Qwens that serve as text encoders, with their tokenizers: the true classes, tiny, with random weights and
vocabularies made here. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .text import WIDTH, byte_letters, loud
from .vocabularies import from_merges

__all__ = ["bytes_tokenizer", "processor", "qwen3", "qwen3_vl", "qwen_vl"]

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bytes_tokenizer(merges: Sequence[tuple[str, str]] = (), **options: Any) -> Any:
    """A tokenizer of bytes with the turns of a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    merged = map("".join, merges)
    vocabulary = {token: i for i, token in enumerate([*byte_letters(), *special, *merged])}
    made = from_merges("Qwen2Tokenizer", vocabulary, merges, model_max_length=4096, **options)
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    made.chat_template = _CHAT_TEMPLATE
    return made


def qwen3(cls: str = "Qwen3Model", **config: Any) -> Any:
    """A Qwen3 and its tokenizer."""
    import transformers

    tokenizer = bytes_tokenizer()
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = transformers.Qwen3Config(
        **(shape | config), hidden_size=WIDTH, head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=2048
    )
    return loud(getattr(transformers, cls)(made)), tokenizer


def qwen_vl(layers: int = 2, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """A Qwen2.5-VL and its tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = bytes_tokenizer(merges)
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"mrope_section": [2, 2, 4], "rope_type": "default", "rope_theta": 1000000.0},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    made = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_picture_ids(tokenizer))
    return loud(Qwen2_5_VLForConditionalGeneration(made)), tokenizer


def qwen3_vl(cls: str = "Qwen3VLModel", layers: int = 3) -> Any:
    """A Qwen3-VL and its tokenizer."""
    import transformers

    tokenizer = bytes_tokenizer()
    text = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": layers, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    made = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **_picture_ids(tokenizer))
    return loud(getattr(transformers, cls)(made)), tokenizer


def _picture_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens that stand for pictures, as a configuration names them."""
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}


def processor(cls: str, tokenizer: Any, **attributes: Any) -> Any:
    """A tokenizer inside a processor of transformers, without the parts of that for pictures, which want torchvision.

    Args:
        cls: Name of its class.
        tokenizer: The tokenizer.
        attributes: What the processor has beside its parts.
    """
    import transformers

    kind: Any = getattr(transformers, cls)
    made = kind.__new__(kind)
    parts = {"tokenizer": tokenizer, "image_processor": None, "video_processor": None}
    for key, value in (parts | attributes).items():
        setattr(made, key, value)
    return made
