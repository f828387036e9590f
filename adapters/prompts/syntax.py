"""What AUTOMATIC1111 and ComfyUI read into a prompt, and where a prefix has to stand in it.

Both cut a prompt into chunks of 75 tokens that are encoded one by one, so the prefix goes in front of each. Both
give words weights; AUTOMATIC1111 also splits prompts (`BREAK`, `AND`), edits them during denoising (`[a:b:0.5]`,
`[a|b]`) and takes tags and comments out of them. What is done about each:

| syntax | |
|---|---|
| `(a)`, `(a:1.2)`, `[a]` | kept; the prefix stands outside. Weights below 0 or above 2 in all are flagged |
| `BREAK` | the prefix stands behind each; within brackets it is flagged |
| `ADDROW`, `ADDCOL`, `ADDBASE`, `ADDCOMM` | the same where scripts are called; else words like any |
| `AND` | the prefix stands behind each; a negative weight behind a part is flagged, as are weights below 1 in all |
| `[a:b:0.5]`, `[a|b]` | kept; the prefix stands outside. Flagged where it could spell `BREAK` or a weight |
| `[a|b] [c|d] …` | flagged where a prompt has so many forms that nobody reads them |
| `<lora:a:1>` | moved to the end, reported as adapter weights; within another one flagged |
| `# a` | taken out, as the server does |
| `embedding:a`, the name of an embedding | reported as textual inversion |
| `__a__`, `{a|b}` | wildcards hide what the prompt says: flagged |
| the name of a prefix | flagged, also with blanks in it: in a negative prompt it would undo the prefix |
| longer than a chunk | cut outside of brackets, the prefix in front of each piece |

Flagged means: it belongs to the channel `prompt_syntax`, which a policy blocks unless it says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

from apl_guard.errors import PrefixNotApplied
from apl_guard.request import Channel

from .readings import is_readable, tokenized_forms

__all__ = ["CHUNK", "draws_the_negative_prompt", "pieces", "prefixed", "read_a1111", "read_comfyui"]

CHUNK = 75
"""Tokens of a prompt that are encoded at once, start and end not counted."""
MAX_WEIGHT = 2.0

_BREAK = re.compile(r"\b(?:BREAK|ADDROW|ADDCOL|ADDBASE|ADDCOMM)\b")
# Regional Prompter cuts at the other words, too. Where it does not run they are words like any, and begin no chunk.
_SPLIT = re.compile(r"(\b(?:AND|BREAK)\b)")
_SPLIT_BY_REGION = re.compile(r"(\b(?:AND|BREAK|ADDROW|ADDCOL|ADDBASE|ADDCOMM)\b)")
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*-\s*[\d.]+\s*$")
_SHARE = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*$")
_TAG = re.compile(r"<\w+:[^>]*>")
_WILDCARD = re.compile(r"__[^\s_](?:(?!__).)*__|\{[^{}]*(?:\||\$\$)[^{}]*\}|\$\{|\{%|\{\{[^{}]*[\"'~]", re.DOTALL)
# `[x|BRE]AK` becomes BREAK during denoising; somewhere a letter of it must stand before a bracket or a bar.
_SPELLED_BREAK = re.compile(r"[BREA][\[\]|:]")
_PREFIX_NAME = re.compile(r"apl-[0-9a-f]{16}")
_SPECIAL = re.compile(r"[()\[\]\\:|<>]")
_EMBEDDING = re.compile(r"embedding:", re.IGNORECASE)


@dataclass(frozen=True)
class Syntax:
    """A prompt as the server will understand it."""

    text: str
    """The prompt without comments, tags at its end."""
    channels: frozenset[Channel]
    """What its syntax brings in besides the prompt."""


def read_a1111(text: str, embeddings: Collection[str] = ()) -> Syntax:
    """Read a prompt as AUTOMATIC1111 does.

    Args:
        text: The prompt.
        embeddings: Names of the embeddings that the server has loaded; there a name is enough to use one.

    Example:
        >>> sorted(read_a1111("a cat <lora:cat:1> AND (a dog:9)").channels)
        [<Channel.ADAPTER_WEIGHTS: 'adapter_weights'>, <Channel.PROMPT_SYNTAX: 'prompt_syntax'>]
    """
    text = strip_comments(text)
    text, tags = _without_tags(text)
    channels = {Channel.ADAPTER_WEIGHTS} if tags else set()
    is_edited = "[" in text and ("|" in text or ":" in text)
    if (
        # Each part by itself, too: a bracket that is closed in the next part is open in its own.
        not all(map(_weights_are_moderate, (text, *_AND.split(text))))
        or any(_PART_WEIGHT.search(part) for part in _AND.split(text))
        or any(any(_open_brackets(part)) for part in _BREAK.split(text)[:-1])
        or (is_edited and _SPELLED_BREAK.search(text))
        or _WILDCARD.search(text)
        or _PREFIX_NAME.search(text.lower())
        or _without_tags(text)[1]  # made by taking out others: the server, which gets these apart, takes it out, too
        or not is_readable(text)
    ):
        channels.add(Channel.PROMPT_SYNTAX)
    said = [form.lower() for form in tokenized_forms(text)]
    for name in embeddings:
        if any(_mention_of(name).search(form) for form in said):
            channels.add(Channel.PROMPT_SYNTAX if _PREFIX_NAME.fullmatch(name) else Channel.TEXTUAL_INVERSION)
    return Syntax(" ".join([text.strip(), *tags]) if tags else text, frozenset(channels))


def read_comfyui(text: str) -> Syntax:
    """Read a prompt as a text-encode node of ComfyUI does.

    Example:
        >>> sorted(read_comfyui("a cat, embedding:mara").channels)
        [<Channel.TEXTUAL_INVERSION: 'textual_inversion'>]
    """
    channels = set()
    if _EMBEDDING.search(text):
        channels.add(Channel.TEXTUAL_INVERSION)
    if not _weights_are_moderate(text, _COMFYUI_BRACKET) or _WILDCARD.search(text) or _PREFIX_NAME.search(text.lower()):
        channels.add(Channel.PROMPT_SYNTAX)
    return Syntax(text, frozenset(channels))


def draws_the_negative_prompt(text: str) -> bool:
    """Whether AUTOMATIC1111 would draw what the negative prompt says, because the weights behind the parts of a prompt,
    which stand for guidance, come to less than 1.

    Example:
        >>> draws_the_negative_prompt("a cat :0"), draws_the_negative_prompt("a cat :0.5 AND a dog :0.5")
        (True, False)
    """
    parts = _AND.split(_without_tags(strip_comments(text))[0])
    weights = [float(found.group(1)) if (found := _SHARE.search(part)) else 1.0 for part in parts]
    return sum(weights) < 1 - 1e-6


def strip_comments(text: str) -> str:
    """Take out what AUTOMATIC1111 takes out: from `#` to the end of its line.

    Example:
        >>> strip_comments("a cat # not a dog")
        'a cat '
    """
    return re.sub(r"#[^\n]*", "", text)


def _without_tags(text: str) -> tuple[str, list[str]]:
    """A text without the tags in it, and these."""
    end = text.rfind(">") + 1  # behind it, each beginning of a tag would be followed to the end of the text
    return _TAG.sub("", text[:end]) + text[end:], _TAG.findall(text, 0, end)


def pieces(text: str, room: int, count: Callable[[str], int]) -> list[str]:
    """Cut a text into pieces that fit into a chunk: at blanks outside of brackets, or within a word that is longer.

    Args:
        text: The text.
        room: Tokens that fit.
        count: At most how many tokens a text has.

    Raises:
        PrefixNotApplied: A part of it can be cut nowhere, so that it would leave its chunk.

    Example:
        >>> pieces("a cat (on a mat)", 10, len)
        ['a cat', '(on a mat)']
    """
    if count(text) <= room:
        return [text]
    found: list[str] = []
    for word in _units(text):
        joined = f"{found[-1]} {word}" if found else word
        if found and count(joined) <= room:
            found[-1] = joined
            continue
        while count(word) > room:
            fits = next((end for end in range(min(len(word), room), 0, -1) if count(word[:end]) <= room), 0)
            if not fits or _SPECIAL.search(word):
                raise _cannot_be_cut(room)
            found.append(word[:fits])
            word = word[fits:]
        found.append(word)
    # A word that is cut may end in one that means something to the server.
    if any(_SPLIT_BY_REGION.fullmatch(piece) for piece in found):
        raise _cannot_be_cut(room)
    return found


def _cannot_be_cut(room: int) -> PrefixNotApplied:
    return PrefixNotApplied(
        f"brackets of the prompt, which cannot be cut, may hold more than {room} tokens, "
        "and the prefix would stand in front of their beginning only; make them shorter, or give the tokenizer"
    )


def prefixed(text: str, name: str, n: int, count: Callable[[str], int], *, by_region: bool = False) -> str:
    """A prompt with an embedding in front of everything that is encoded by itself.

    Args:
        text: The prompt, as `read_a1111` gave it.
        name: Name of the embedding.
        n: Its number of vectors.
        count: At most how many tokens a text has.
        by_region: Whether a script may cut the prompt into regions.

    Raises:
        PrefixNotApplied: A part of it can be cut nowhere, so that it would leave its chunk.

    Example:
        >>> prefixed("a cat AND a dog", "apl-0", 10, len)
        'apl-0 a cat AND apl-0 a dog'
    """
    parts = (_SPLIT_BY_REGION if by_region else _SPLIT).split(text)
    for position in range(0, len(parts), 2):
        cut = pieces(parts[position].strip(), CHUNK - n, count)
        parts[position] = " BREAK ".join(f"{name} {piece}".strip() for piece in cut)
    return " ".join(parts)


def _units(text: str) -> list[str]:
    """Words, and what stands in brackets with the words that touch it."""
    units: list[str] = []
    opened = (0, 0)
    for word in re.split(r"\s+", text.strip()):
        if any(opened):
            units[-1] += f" {word}"
        else:
            units.append(word)
        opened = _open_brackets(word, opened)
    return units


def _open_brackets(text: str, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """How many brackets, round and square, are open at the end of a text. Each kind is counted apart: a round one does
    not close a square one. One that is never opened closes nothing."""
    opened = dict(zip("([", before, strict=True))
    for found in re.finditer(r"\\.|[()\[\]]", text):
        sign = found.group()
        if sign in opened:
            opened[sign] += 1
        elif sign in ")]":
            kind = "(" if sign == ")" else "["
            opened[kind] = max(0, opened[kind] - 1)
    return opened["("], opened["["]


_BRACKET = re.compile(r"\\.|[()]", re.DOTALL)
# There a backslash makes a letter of the bracket behind it, whatever stands in front of the backslash.
_COMFYUI_BRACKET = re.compile(r"\\[()]|[()]")


def _weights_are_moderate(text: str, bracket: re.Pattern[str] = _BRACKET) -> bool:
    """Whether every weight lies in 0 … 2, and so do the products of nested ones.

    A huge weight on a name drowns the prefix, a negative one turns it round.
    """
    greatest = [1.0]
    starts: list[int] = []
    for found in bracket.finditer(text):
        if found.group() == "(":
            starts.append(found.end())
            greatest.append(1.0)
        elif found.group() == ")" and starts:
            weight = _explicit_weight(text[starts.pop() : found.start()])
            if weight is None or not 0 <= weight <= MAX_WEIGHT:
                return False
            inner = greatest.pop()
            greatest[-1] = max(greatest[-1], inner * max(1.0, weight))
    while starts:
        starts.pop()
        inner = greatest.pop()
        greatest[-1] = max(greatest[-1], inner * 1.1)
    return greatest[0] <= MAX_WEIGHT


def _explicit_weight(group: str) -> float | None:
    """The weight that a group in round brackets gives itself; None where it can only be known while drawing."""
    _, colon, number = group.rpartition(":")
    if not colon:
        return 1.1
    try:
        weight = float(number)
    except ValueError:
        is_edited = any(c in number for c in "[]|") and any(c.isdigit() for c in number)
        return None if is_edited else 1.1
    return weight if math.isfinite(weight) else None


@lru_cache(maxsize=10_000)
def _mention_of(name: str) -> re.Pattern[str]:
    """How AUTOMATIC1111 could find the name of an embedding in small letters, which it does after tokenizing."""
    words = re.findall(r"[^\W\d_]+|\d|[^\w\s]+|_+", name.lower())
    if not words:
        return re.compile(r"(?!)")
    end = r"(?![^\W\d_])" if words[-1][-1].isalpha() else ""
    return re.compile(r"\s*".join(map(re.escape, words)) + end)
