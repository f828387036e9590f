"""A detector of persons for tests: a real model of transformers whose answers are set by hand."""

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
