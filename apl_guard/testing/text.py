"""Text encoders and tokenizers of every kind that text-to-image models use: the true classes, tiny, with random
weights and vocabularies made here. Nothing is downloaded."""

from __future__ import annotations

import functools
import io
import os
import shutil
import string
import tempfile
import weakref
from typing import Any

__all__ = [
    "bert",
    "chat_glm",
    "clip",
    "gemma",
    "glm",
    "llama",
    "processor",
    "qwen3",
    "qwen_vl",
    "slots",
    "t5",
    "tiny_tokenizer",
]

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
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    from transformers import CLIPTokenizer

    letters = list(_byte_letters())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in _MERGES)]
    merges: Any = _MERGES  # pairs, as the library wants them whatever it says
    ids = {token: i for i, token in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=merges, pad_token=padding, model_max_length=77)


def _byte_letters() -> list[str]:
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
    shape = {"hidden_size": _WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    made = transformers.CLIPTextConfig(
        **(shape | {"projection_dim": _WIDTH} | config),
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _loud(getattr(transformers, cls)(made)), tokenizer


def t5(cls: str = "T5", length: int = 512, **config: Any) -> Any:
    """A T5 or UMT5 encoder and its tokenizer."""
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -4.0) for c in string.ascii_letters + string.digits + string.punctuation]
    pieces += [(word, -3.0) for word in ["▁a", "▁of", "▁photo", "▁man", "er", "in"]]
    extra = [(f"<extra_id_{i}>", 0.0) for i in range(9, -1, -1)]
    tokenizer = transformers.T5Tokenizer(vocab=[*pieces, *extra], extra_ids=10, model_max_length=length)
    shape = {"d_model": _WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    made = getattr(transformers, f"{cls}Config")(**(shape | config), vocab_size=len(tokenizer))
    return _loud(getattr(transformers, f"{cls}EncoderModel")(made)), tokenizer


def bert() -> Any:
    """A BERT and its tokenizer, as in Hunyuan-DiT."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "man"]
    words += [*string.ascii_lowercase[1:], *(f"##{c}" for c in string.ascii_lowercase), *string.punctuation]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77)
    shape = {"hidden_size": _WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = BertConfig(**shape, vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return _loud(BertModel(made)), tokenizer


def bytes_tokenizer(cls: str = "Qwen2Tokenizer", **options: Any) -> Any:
    """A tokenizer of bytes with the turns of a chat template."""
    import transformers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    vocabulary = {token: i for i, token in enumerate([*_byte_letters(), *special])}
    made = getattr(transformers, cls)(vocab=vocabulary, merges=[], model_max_length=4096, **options)
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    made.chat_template = _CHAT_TEMPLATE
    return made


def qwen3(cls: str = "Qwen3Model", width: int = _WIDTH, **config: Any) -> Any:
    """A Qwen3 and its tokenizer."""
    import transformers

    tokenizer = bytes_tokenizer()
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = transformers.Qwen3Config(
        **(shape | config), hidden_size=width, head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=2048
    )
    return _loud(getattr(transformers, cls)(made)), tokenizer


def qwen_vl(width: int = _WIDTH) -> Any:
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
    return _loud(Qwen2_5_VLForConditionalGeneration(made)), tokenizer


def processor(tokenizer: Any) -> Any:
    """A tokenizer inside the processor of Qwen-VL, without its parts for pictures, which want torchvision."""
    from transformers import ProcessorMixin, Qwen2VLProcessor

    made: Any = Qwen2VLProcessor.__new__(Qwen2VLProcessor)
    made.tokenizer, made.image_processor, made.video_processor = tokenizer, None, None
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    assert isinstance(made, ProcessorMixin)
    return made


def glm() -> Any:
    """A GLM 4 and its tokenizer, which puts two tokens in front and pads on the left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "[gMASK]", "<sop>"]
    vocabulary = {token: i for i, token in enumerate([*_byte_letters(), *special])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
        padding_side="left",
        model_max_length=4096,
    )
    start = [(token, vocabulary[token]) for token in special[1:]]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=start)
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    padding = tokenizer.pad_token_id
    made = GlmConfig(**shape, hidden_size=_WIDTH, head_dim=8, vocab_size=len(tokenizer), pad_token_id=padding)
    return _loud(GlmModel(made)), tokenizer


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
        hidden_size=_WIDTH,
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
    return _loud(text_encoder), tokenizer


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
    return _loud(getattr(transformers, cls)(made)), tokenizer


def llama() -> Any:
    """A Llama 3 and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bytes_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = None
    shape = {"intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = LlamaConfig(**shape, hidden_size=16, vocab_size=len(tokenizer))
    return _loud(LlamaForCausalLM(made)), tokenizer


def _loud(model: Any) -> Any:
    """Weights so large that prompts differ clearly; the usual initialisation is very small."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return model.eval()
