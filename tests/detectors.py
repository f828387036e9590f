"""Detectors of persons for tests: a real model of transformers whose answers are set by hand, and one of GLiNER."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

WINDOW = 64
"""Tokens that it reads at once."""


def save_detector(folder: Path, surely: float = 2.0) -> Path:
    """Save a model that takes every word for a person, with the same score.

    Args:
        folder: Where it goes.
        surely: How much more it is a person than nothing; `LOC` has 1.
    """
    core = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=WINDOW, **special).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    labels = dict(enumerate(["O", "PER", "LOC"]))
    model = BertForTokenClassification(
        BertConfig(vocab_size=2, id2label=labels, max_position_embeddings=WINDOW, **size)
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, surely, 1.0]))
    model.save_pretrained(folder)
    return folder


def save_gliner(folder: Path, words: str, window: int = 48, **config: object) -> Path:
    """Save a model of GLiNER with random weights: it says something about every row of words, whatever that is.

    Args:
        folder: Where it goes.
        words: The words that its tokenizer knows; of each other word, every letter is a token.
        window: Tokens that it reads at once.
        config: Further settings of it.
    """
    from gliner.config import UniEncoderSpanConfig
    from gliner.model import UniEncoderSpanGLiNER

    known = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words.split(), *map(chr, range(33, 127))])
    pieces = {**known, **{f"##{chr(code)}": None for code in range(33, 127)}}
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=window, **special)
    tokenizer.add_tokens(["<<ENT>>", "<<SEP>>"], special_tokens=True)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": window, **size}
    asked = {
        "model_name": "none",
        "hidden_size": 32,
        "max_width": 4,
        "max_len": 20,
        "vocab_size": len(tokenizer),
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        asked = UniEncoderSpanConfig(encoder_config=encoder, class_token_index=len(tokenizer) - 2, **asked)
        model = UniEncoderSpanGLiNER(asked, tokenizer=tokenizer, backbone_from_pretrained=False)
    model.save_pretrained(folder, safe_serialization=True)
    return folder
