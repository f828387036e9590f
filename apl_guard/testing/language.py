"""Language models other than Qwen that serve as text encoders, with their tokenizers: the true classes, tiny, with
random weights and vocabularies made here. Nothing is downloaded."""

from __future__ import annotations

import functools
import io
import os
import shutil
import string
import tempfile
import weakref
from typing import Any

from .qwen_encoders import bytes_tokenizer, processor
from .text import WIDTH, byte_letters, loud
from .vocabularies import from_files

__all__ = ["chat_glm", "gemma", "glm", "llama", "ministral3", "mistral3", "smol", "t5_gemma"]


def mistral3(cls: str = "Mistral3ForConditionalGeneration") -> Any:
    """A Mistral 3 and its tokenizer, inside the processor that has the chat template, as in Flux.2."""
    import transformers

    special = ["<pad>", "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    special += ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = _bytes(special, "left", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "<s>{% for m in messages %}{% set turn = 'SYSTEM_PROMPT' if m.role == 'system' else 'INST' %}"
        "[{{ turn }}]{% for c in m.content %}{{ c.text }}{% endfor %}[/{{ turn }}]{% endfor %}"
    )
    shape = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = transformers.Mistral3Config(
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
    return loud(getattr(transformers, cls)(made)), inside


def ministral3() -> Any:
    """A Mistral 3 and its tokenizer, which puts a start token in front and has no template, as in ERNIE-Image."""
    from tokenizers.processors import TemplateProcessing

    text_encoder, inside = mistral3("Mistral3Model")
    tokenizer = inside.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.model_max_length = 60
    return text_encoder, tokenizer


def glm() -> Any:
    """A GLM 4 and its tokenizer, which puts two tokens in front and pads on the left."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GlmConfig, GlmModel

    start = ["[gMASK]", "<sop>"]
    tokenizer = _bytes(["<|endoftext|>", *start], "left", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in start]
    )
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    padding = tokenizer.pad_token_id
    made = GlmConfig(**shape, hidden_size=WIDTH, head_dim=8, vocab_size=len(tokenizer), pad_token_id=padding)
    return loud(GlmModel(made)), tokenizer


def _bytes(special: list[str], padding: str, first: int = 256, **roles: str) -> Any:
    """A tokenizer of bytes that pads on one side, of no model's own class; its special tokens have ids from `first`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {letter: i for i, letter in enumerate(byte_letters())} | {token: first + i for i, token in enumerate(special)}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    others = [token for token in special if token not in roles.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=others,
        padding_side=padding,
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


def gemma(version: str = "Gemma2", cls: str = "Gemma2Model") -> Any:
    """A Gemma and its tokenizer, which puts a start token in front and no end token behind."""
    import transformers

    tokenizer = _gemma_tokenizer()
    shape = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    made = getattr(transformers, f"{version}Config")(
        **shape, hidden_size=8, head_dim=4, vocab_size=len(tokenizer), attn_implementation="eager"
    )
    return loud(getattr(transformers, cls)(made)), tokenizer


def t5_gemma() -> Any:
    """The encoder of a T5Gemma and its tokenizer, as in PRX."""
    from transformers import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = _gemma_tokenizer()
    tokenizer.model_max_length = 64
    shape: Any = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": len(tokenizer),
        "layer_types": ["full_attention", "sliding_attention"],
        "dropout_rate": 0.0,
        "attn_implementation": "eager",
    }
    made = T5GemmaConfig(encoder=T5GemmaModuleConfig(**shape), is_encoder_decoder=False)
    return loud(T5GemmaEncoder(made.encoder)), tokenizer


def _gemma_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁"])}
    for letter in string.ascii_letters + string.digits + string.punctuation + "\n":
        vocabulary.setdefault(letter, len(vocabulary))
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return from_files("GemmaTokenizerFast", {"tokenizer.json": backend.to_str()}, model_max_length=1024)


def smol() -> Any:
    """A SmolLM 3 and its tokenizer, which puts a start token in front, as in Bria FIBO."""
    from tokenizers.processors import TemplateProcessing
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    start = "<|begin_of_text|>"
    tokenizer = _bytes([start, "<|end_of_text|>"], "right", 128_000, bos_token=start, pad_token="<|end_of_text|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    # The pipeline gives an empty text as an id of the real vocabulary, whatever the tokenizer is.
    made = SmolLM3Config(**shape, hidden_size=WIDTH, vocab_size=128_002, pad_token_id=tokenizer.pad_token_id)
    return loud(SmolLM3ForCausalLM(made)), tokenizer


def llama() -> Any:
    """A Llama 3 and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bytes_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = None
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = LlamaConfig(**shape, hidden_size=16, vocab_size=len(tokenizer))
    return loud(LlamaForCausalLM(made)), tokenizer
