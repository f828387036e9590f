"""Language models that serve as text encoders, with their tokenizers: the true classes, tiny, with random weights and
vocabularies made here. Nothing is downloaded."""

from __future__ import annotations

import functools
import io
import os
import shutil
import string
import tempfile
import weakref
from typing import Any

from .text import WIDTH, byte_letters, loud

__all__ = [
    "bytes_tokenizer",
    "chat_glm",
    "gemma",
    "glm",
    "llama",
    "mistral3",
    "processor",
    "qwen3",
    "qwen_vl",
]

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bytes_tokenizer(cls: str = "Qwen2Tokenizer", **options: Any) -> Any:
    """A tokenizer of bytes with the turns of a chat template."""
    import transformers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    vocabulary = {token: i for i, token in enumerate([*byte_letters(), *special])}
    made = getattr(transformers, cls)(vocab=vocabulary, merges=[], model_max_length=4096, **options)
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    made.chat_template = _CHAT_TEMPLATE
    return made


def qwen3(cls: str = "Qwen3Model", width: int = WIDTH, **config: Any) -> Any:
    """A Qwen3 and its tokenizer."""
    import transformers

    tokenizer = bytes_tokenizer()
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = transformers.Qwen3Config(
        **(shape | config), hidden_size=width, head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=2048
    )
    return loud(getattr(transformers, cls)(made)), tokenizer


def qwen_vl(width: int = WIDTH) -> Any:
    """A Qwen2.5-VL and its tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = bytes_tokenizer()
    text = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"mrope_section": [2, 2, 4], "rope_type": "default", "rope_theta": 1000000.0},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    made = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        **ids,
    )
    return loud(Qwen2_5_VLForConditionalGeneration(made)), tokenizer


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


def mistral3() -> Any:
    """A Mistral 3 and its tokenizer, inside the processor that has the chat template, as in Flux.2."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    special = ["<pad>", "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    special += ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = _bytes_on_the_left(special, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "<s>{% for m in messages %}{% set turn = 'SYSTEM_PROMPT' if m.role == 'system' else 'INST' %}"
        "[{{ turn }}]{% for c in m.content %}{{ c.text }}{% endfor %}[/{{ turn }}]{% endfor %}"
    )
    shape = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = Mistral3Config(
        text_config={
            "model_type": "mistral",
            **shape,
            "hidden_size": WIDTH,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    # Its own class, PixtralProcessor, wants torchvision; what it does with texts is all in the base class.
    inside = processor("ProcessorMixin", tokenizer, chat_template=template)
    return loud(Mistral3ForConditionalGeneration(made)), inside


def glm() -> Any:
    """A GLM 4 and its tokenizer, which puts two tokens in front and pads on the left."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GlmConfig, GlmModel

    start = ["[gMASK]", "<sop>"]
    tokenizer = _bytes_on_the_left(["<|endoftext|>", *start], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in start]
    )
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    padding = tokenizer.pad_token_id
    made = GlmConfig(**shape, hidden_size=WIDTH, head_dim=8, vocab_size=len(tokenizer), pad_token_id=padding)
    return loud(GlmModel(made)), tokenizer


def _bytes_on_the_left(special: list[str], **roles: str) -> Any:
    """A tokenizer of bytes that pads on the left, of no model's own class."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*byte_letters(), *special])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    others = [token for token in special if token not in roles.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=others,
        padding_side="left",
        model_max_length=4096,
        **roles,
    )


def chat_glm() -> Any:
    """A ChatGLM 3 and its tokenizer, as in Kolors."""
    import torch
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "tokenizer.model")
    with open(path, "wb") as file:
        file.write(_pieces())
    tokenizer = ChatGLMTokenizer(path)
    weakref.finalize(tokenizer, shutil.rmtree, folder, ignore_errors=True)  # it copies the file when it is saved
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
        add_qkv_bias=True,
    )
    text_encoder = ChatGLMModel(config, empty_init=False)
    with torch.no_grad():
        for name, weight in text_encoder.named_parameters():
            if "norm" in name:  # left as it was found in memory
                weight.fill_(1)
    return loud(text_encoder), tokenizer


@functools.cache
def _pieces() -> bytes:
    """A vocabulary of sentencepiece, with a piece for each byte."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a man", string.printable]),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


def gemma(version: str = "Gemma2", cls: str = "Gemma2Model", width: int = 8) -> Any:
    """A Gemma and its tokenizer, which puts a start token in front and no end token behind."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁"])}
    for letter in string.ascii_letters + string.digits + string.punctuation + "\n":
        vocabulary.setdefault(letter, len(vocabulary))
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=1024)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    shape = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    made = getattr(transformers, f"{version}Config")(
        **shape, hidden_size=width, head_dim=4, vocab_size=len(tokenizer), attn_implementation="eager"
    )
    return loud(getattr(transformers, cls)(made)), tokenizer


def llama() -> Any:
    """A Llama 3 and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bytes_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = None
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = LlamaConfig(**shape, hidden_size=16, vocab_size=len(tokenizer))
    return loud(LlamaForCausalLM(made)), tokenizer
