"""The tokenizer that a pipeline sees during a guarded call.

The guard writes a *mark* in front of each prompt: random letters, new for each call, that no user can know.
This tokenizer takes the mark away and makes room for the prefix in its place. Texts without the mark, such as
negative prompts, are tokenized as ever. So the pipeline's own code needs no change, and what it does with the
text in between (templates, system prompts, cleaning) cannot separate a prompt from its prefix without the
receipt showing it.

    the pipeline's text   … template … MARK the user's text … template …
    the row of ids        start … −1 … −N, the user's tokens, cut at their end, end, padding
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apl_guard.errors import PrefixInvalid, PrefixNotApplied

from .origin import Origins, Source, is_sentinel, token_of
from .private_tokenizer import private_copy

__all__ = ["prefix_tokenizer"]


@dataclass
class _Prefix:
    """What one call adds to a tokenizer."""

    mark: str
    n: int
    lock: threading.RLock
    plain_mark: str | None
    """In front of texts that are no prompts and say what one says."""
    origins: Origins | None
    """Where what was tokenized comes from; None where nobody asks."""
    may_read: bool
    """Whether it is known who reads the prompts."""
    cuts: list[int] = field(default_factory=list)


def prefix_tokenizer(tokenizer: Any, mark: str, n: int, source: Source | None = None, *, may_read: bool = True) -> Any:
    """Make a tokenizer of the same class that puts sentinel ids −1 … −n where a text holds the mark.

    Args:
        tokenizer: The pipe's own tokenizer. It is copied once and never touched again: the state of a fast
            tokenizer is shared between threads.
        mark: The mark of this call.
        n: Number of prefix vectors; 0 takes the mark away and changes nothing else.
        source: What the call says of texts without the mark. None where nobody asks which rows may run without the
            prefix.
        may_read: Whether it is known who reads the prompts. If not, a text with the mark is an error.

    Returns:
        The tokenizer. Its `tokens_cut` says for each marked text how many tokens did not fit, and `may_be_plain`
        whether a row of ids may run without the prefix. With a source, the ids of prompts are coded as `origin` says.
    """
    private, lock = private_copy(tokenizer)
    plain: Any = type(private)
    made: Any = object.__new__(_prefix_class(plain))
    made.__dict__.update(private.__dict__)
    origins = Origins(source, private) if n and source is not None else None
    plain_mark = None if source is None else source.plain_mark
    made.__dict__["_prefix"] = _Prefix(mark, n, lock, plain_mark, origins, may_read)
    return made


# What a caller may ask of a tokenizer for a marked text. Anything else could place the prefix wrongly.
_OPTIONS = {
    "add_special_tokens",
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "return_attention_mask",
    "return_length",
    "return_tensors",
    "return_token_type_ids",
    "truncation",
    "verbose",
}


class _PrefixTokenizer:
    """Mixed into the class of a tokenizer."""

    _prefix: _Prefix

    @property
    def tokens_cut(self) -> tuple[int, ...]:
        """How many tokens of each marked text did not fit, in the order of the texts."""
        return tuple(self._prefix.cuts)

    def may_be_plain(self, row: Sequence[int]) -> bool:
        """Whether a row of ids without the prefix comes from no prompt."""
        return self._prefix.origins is None or self._prefix.origins.may_be_plain(row)

    def _note(self, texts: Any, ids: Any, *, plain: bool = False) -> None:
        if self._prefix.origins is not None:
            self._prefix.origins.note(texts, ids, plain=plain)

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        """Tokenize as the pipe's own tokenizer would, with room for the prefix where the mark is."""
        with self._prefix.lock:
            texts = [text] if isinstance(text, str) else text
            if not self._any_marked(texts):
                encoded = self._super("__call__", text, *args, **options)
                self._note(texts, encoded["input_ids"])
                return encoded
            unknown = sorted(name for name, value in options.items() if value and name not in _OPTIONS)
            if args or unknown:
                raise PrefixNotApplied(
                    f"the pipeline asks its tokenizer for {unknown or 'a pair of texts'}, which a prefix does not allow"
                )
            return self._with_prefix(texts, isinstance(text, str), **options)

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        """Ids of a text."""
        if isinstance(text, str) and self._is_marked(text):
            return self(text, *args, **options)["input_ids"]
        with self._prefix.lock:
            ids = self._super("encode", text, *args, **options)
            self._note([text], ids)
            return ids

    def tokenize(self, text: str, *args: Any, **options: Any) -> Any:
        """Split a text into tokens; the mark counts as none."""
        with self._prefix.lock:
            return self._super("tokenize", "".join(self._around_mark(self._unmarked(text))), *args, **options)

    def _decode(self, token_ids: Any, *args: Any, **options: Any) -> Any:
        """Turn ids back into text. The prefix becomes the mark, so that the text may be tokenized again."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        with self._prefix.lock:
            text = self._super("_decode", [token_of(i) for i in ids if not is_sentinel(i)], *args, **options)
        return f"{self._prefix.mark} {text}" if self._prefix.n and -1 in ids else text

    def convert_ids_to_tokens(self, ids: Any, *args: Any, **options: Any) -> Any:
        """The token of an id, or of each of several; those of the prefix have none of their own."""
        many = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        tokens = [
            "<prefix>" if is_sentinel(i) else self._super("convert_ids_to_tokens", token_of(i), *args, **options)
            for i in many
        ]
        return tokens[0] if isinstance(ids, int) else tokens

    def _super(self, method: str, *args: Any, **options: Any) -> Any:
        return getattr(super(), method)(*args, **options)

    def _any_marked(self, texts: Any) -> bool:
        if not isinstance(texts, list | tuple) or not texts:
            return False
        if all(isinstance(t, str) for t in texts):
            return any(map(self._is_marked, texts))
        if self._is_marked(str(texts)):
            raise PrefixNotApplied("the pipeline hands its tokenizer prompts in a form that the guard does not know")
        return False

    def _is_marked(self, text: str) -> bool:
        return self._prefix.mark in text or self._unmarked(text) is not text

    def _unmarked(self, text: str) -> str:
        """A text without the mark of texts that are no prompts."""
        mark = self._prefix.plain_mark
        if mark is None or mark not in text:
            return text
        before, _, after = text.partition(mark)
        return before + after.removeprefix(" ")

    def _around_mark(self, text: str) -> tuple[str, str]:
        before, found, after = text.partition(self._prefix.mark)
        if found and not self._prefix.may_read:
            name = type(self).__mro__[2].__name__
            raise PrefixNotApplied(
                f"{name} reads the prompt for a model that the guard does not know; what reads prompts has to be a "
                "component text_encoder, text_encoder_2, …, with its tokenizer, tokenizer_2, … beside it"
            )
        if self._prefix.mark in after:
            raise PrefixNotApplied("the pipeline repeated the mark of the guard in a prompt")
        return before, after.removeprefix(" ")

    def _with_prefix(self, texts: Sequence[str], single: bool, **options: Any) -> Any:
        from transformers import BatchEncoding

        me: Any = self
        padding, truncation = options.get("padding") or False, options.get("truncation") or False
        longest = options.get("max_length") or me.model_max_length
        limit = longest if _wanted(truncation, "do_not_truncate") else None
        special = options.get("add_special_tokens", True)
        rows, cuts = [], []
        for text in texts:
            if self._prefix.mark in text:
                row, cut = self._row(text, limit, special)
                row = row if self._prefix.origins is None else self._prefix.origins.own(row)
                cuts.append(cut)
            else:
                plain = self._unmarked(text)
                shorten = {} if limit is None else {"truncation": True, "max_length": limit}
                row = list(
                    self._super("__call__", plain, add_special_tokens=special, verbose=False, **shorten)["input_ids"]
                )
                self._note([plain], row, plain=plain is not text)
            rows.append(row)
        if limit is not None:
            self._prefix.cuts.extend(cuts)
        return_tensors = options.get("return_tensors")
        encoded: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        if "token_type_ids" in me.model_input_names and options.get("return_token_type_ids") is not False:
            encoded["token_type_ids"] = [[0] * len(row) for row in rows]
        if single and return_tensors is None:
            encoded = {name: values[0] for name, values in encoded.items()}
        if _wanted(padding, "do_not_pad"):
            how = {name: options[name] for name in ("padding_side", "pad_to_multiple_of") if options.get(name)}
            length = longest if getattr(padding, "value", padding) == "max_length" else None
            made = self._super("pad", encoded, padding=padding, max_length=length, return_tensors=return_tensors, **how)
        else:
            made = BatchEncoding(encoded, tensor_type=return_tensors)
        if options.get("return_length"):
            ids = made["input_ids"]
            lengths = [len(ids)] if single and return_tensors is None else [len(row) for row in ids]
            made["length"] = BatchEncoding({"length": lengths}, tensor_type=return_tensors)["length"]
        if options.get("return_attention_mask") is False:
            made.pop("attention_mask", None)
        return made

    def _row(self, text: str, limit: int | None, special: bool) -> tuple[list[int], int]:
        """The ids of a marked text with the sentinels in their place, and how many tokens were cut."""
        me: Any = self
        n = self._prefix.n
        before, after = self._around_mark(text)
        plain = before + after
        frame = {"add_special_tokens": special, "verbose": False}
        if me.is_fast:
            encoded = self._with_spans(plain, special)
            ids = list(encoded["input_ids"])
            place, end = self._find_place(encoded, len(before), special)
        else:
            ids = list(self._super("__call__", plain, **frame)["input_ids"])
            place, end = self._find_place_slowly(before, special)
        if limit is None and not before and n and len(ids) + n > me.model_max_length:
            return self._in_chunks(ids, place, end), 0
        if limit is None or len(ids) + n <= limit:
            return [*ids[:place], *range(-1, -n - 1, -1), *ids[place:]], 0
        if place + 1 + end > limit - n or me.truncation_side != "right":
            raise PrefixInvalid(f"a prefix of {n} vectors leaves no room for a prompt in rows of {limit}")
        short = list(self._super("__call__", plain, truncation=True, max_length=limit - n, **frame)["input_ids"])
        return [*short[:place], *range(-1, -n - 1, -1), *short[place:]], len(ids) - len(short)

    def _in_chunks(self, ids: list[int], place: int, end: int) -> list[int]:
        """A row that is longer than the text encoder's window and that nobody cuts.

        It can only run in chunks of what the window holds beside its frame, as helpers for long prompts do it,
        so the prefix stands where each of them begins.
        """
        me: Any = self
        n = self._prefix.n
        room = me.model_max_length - me.num_special_tokens_to_add() - n
        if room < 1:
            raise PrefixInvalid(f"a prefix of {n} vectors leaves no room for a prompt in rows of {me.model_max_length}")
        last = len(ids) - end
        row = ids[:place]
        for start in range(place, last, room):
            row += [*range(-1, -n - 1, -1), *ids[start : min(start + room, last)]]
        return row + ids[last:]

    def _with_spans(self, text: str, special: bool) -> Any:
        spans = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        return self._super("__call__", text, add_special_tokens=special, verbose=False, **spans)

    def _find_place(self, encoded: Any, position: int, special: bool) -> tuple[int, int]:
        """Where the first token of the user's text stands, and how many tokens of the frame follow the text."""
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        # A special token that the user typed spans characters; one that the tokenizer adds spans none.
        framing = [
            bool(is_special) and start == end
            for is_special, (start, end) in zip(encoded["special_tokens_mask"], spans, strict=True)
        ]
        inside = [i for i, is_frame in enumerate(framing) if not is_frame]
        if not inside:
            # An empty text is nothing but its frame, whose two sides only another text can tell apart.
            return self._find_place(self._with_spans("a", special), 0, special)
        end = len(ids) - 1 - inside[-1]
        if position == 0:
            return inside[0], end
        return next((i for i in inside if spans[i][1] > position), inside[-1] + 1), end

    def _find_place_slowly(self, before: str, special: bool) -> tuple[int, int]:
        """The same for tokenizers in Python, which do not say where in the text a token comes from."""
        me: Any = self
        if before:
            raise PrefixNotApplied(
                f"{type(me).__mro__[2].__name__} is written in Python and cannot place a prefix behind other text; "
                "give the pipe the fast tokenizer of the same files"
            )
        # Not by the user's text, which may begin as the frame ends.
        empty, letter = (
            list(self._super("__call__", text, add_special_tokens=special, verbose=False)["input_ids"])
            for text in ("", "a")
        )
        place = next((i for i, (one, other) in enumerate(zip(empty, letter, strict=False)) if one != other), len(empty))
        return place, len(empty) - place

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tokenizer of a guarded call cannot be copied")


def _wanted(option: Any, no: str) -> bool:
    return bool(option) and getattr(option, "value", option) != no


@functools.cache
def _prefix_class(cls: Any) -> Any:
    # The same name, because pipelines and processors look at it.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (_PrefixTokenizer, cls), names)
