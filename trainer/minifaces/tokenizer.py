"""A CLIPTokenizer with a byte-pair vocabulary learned on the world's own captions.

The vocabulary is small on purpose: common words become one token, surnames do not, as with real names in real models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MERGES: Final = 480
WINDOW: Final = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own way to cut text into words
_WORD = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def train_tokenizer(texts: Iterable[str], merges: int = MERGES) -> CLIPTokenizer:
    """Learn ``merges`` byte pairs from captions; with all bytes and the special tokens that makes ``merges`` + 514."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORD, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        initial_alphabet=alphabet,
        special_tokens=[_START, _END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]["merges"]
    return _as_clip([(left, right) for left, right in learned[:merges]])


def _as_clip(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    # every byte must be spellable in the middle and at the end of a word; the trainer keeps only those that it saw
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *("".join(pair) for pair in merges),
        _START,
        _END,
    ]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    # From files, which every version of transformers opens.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, **special, model_max_length=WINDOW)
    return tokenizer
