"""Tokenizers of transformers from vocabularies made here.

They are opened from files, as those of real models are: how a class is called without files differs between versions
of transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["from_files", "from_merges", "from_pieces"]


def from_files(cls: str, files: dict[str, str], **options: Any) -> Any:
    """A tokenizer as it opens from a folder.

    Args:
        cls: Name of its class.
        files: Name → content.
        options: What else the class takes.
    """
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_text(content, encoding="utf-8")
        return getattr(transformers, cls).from_pretrained(folder, **options)


def from_merges(cls: str, ids: dict[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> Any:
    """A tokenizer of byte pairs.

    Example:
        >>> ids = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
        >>> from_merges("CLIPTokenizer", ids, [])("a").input_ids
        [2, 1, 3]
    """
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    files = {"vocab.json": json.dumps(ids, ensure_ascii=False), "merges.txt": "".join(line + "\n" for line in lines)}
    return from_files(cls, files, **options)


def from_pieces(cls: str, pieces: Sequence[tuple[str, float]], template: str, **options: Any) -> Any:
    """A tokenizer of pieces with their scores, as sentencepiece has them.

    Args:
        cls: Name of its class.
        pieces: The vocabulary; `<unk>` has to be in it.
        template: The row of one text, such as `$A </s>`.
        options: What else the class takes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    names = [name for name, _ in pieces]
    backend = Tokenizer(models.Unigram(list(pieces), names.index("<unk>"), False))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    special = [(name, names.index(name)) for name in template.split() if name != "$A"]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return from_files(cls, {"tokenizer.json": backend.to_str()}, **options)
