"""A server that speaks AUTOMATIC1111's API and reads prompts as it does, down to the chunks that are encoded.

Written from the documentation and behaviour of the web UI, without the code under test: it is the oracle for
"the prefix stands at the beginning of every chunk of everything that is encoded".
"""

import json
import random
import re
from itertools import islice

import ftfy
from services import Service, b64, png

from apl_guard.testing import tiny_tokenizer

CHUNK, BACKTRACK = 75, 20
MODEL = {
    "sd_checkpoint_hash": "6ce0161689" + "ab" * 27,
    "sd_model_checkpoint": "v1-5-pruned-emaonly.safetensors [6ce0161689]",
}
ATTENTION = re.compile(r"\\.|\\|\(|\[|:([+-]?[.\d]+)\)|\)|\]|[^\\()\[\]:]+|:", re.DOTALL)
TOKENIZER = tiny_tokenizer()


def ids_of(text):
    """As its tokenizers do, which mend broken letters where ftfy is installed; the web UI requires it."""
    return TOKENIZER(ftfy.fix_text(text), add_special_tokens=False).input_ids


def attention(text):
    """Pieces of a text with their weights; BREAK is a piece of weight −1."""
    pieces, rounds, squares = [], [], []

    def multiply(start, by):
        for piece in pieces[start:]:
            piece[1] *= by

    for found in ATTENTION.finditer(text):
        token, weight = found.group(0), found.group(1)
        if token.startswith("\\"):
            pieces.append([token[1:], 1.0])
        elif token == "(":
            rounds.append(len(pieces))
        elif token == "[":
            squares.append(len(pieces))
        elif weight is not None and rounds:
            multiply(rounds.pop(), float(weight))
        elif token == ")" and rounds:
            multiply(rounds.pop(), 1.1)
        elif token == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            for number, part in enumerate(re.split(r"\s*\bBREAK\b\s*", token)):
                if number:
                    pieces.append(["BREAK", -1])
                pieces.append([part, 1.0])
    for start in rounds:
        multiply(start, 1.1)
    for start in squares:
        multiply(start, 1 / 1.1)
    merged = [["", 1.0]]
    for text, weight in pieces:
        if merged[-1][1] == weight:
            merged[-1][0] += text
        else:
            merged.append([text, weight])
    return merged


def variants(text):
    """What a text can be while it is drawn: the choices of `[a|b]` and `[a:b:0.5]`, innermost first."""
    found = re.search(r"\[([^\[\]()]*)\]", text)
    while found and not re.search(r"[|]|:\s*[.\d]+$", found.group(1)):
        found = re.compile(r"\[([^\[\]()]*)\]").search(text, found.end())
    if not found:
        yield text
        return
    inside = found.group(1)
    for choice in inside.split("|") if "|" in inside else (["", *inside.split(":")[:-1]])[-2:]:
        yield from variants(text[: found.start()] + choice + text[found.end() :])


class A1111Server(Service):
    """Has the embeddings that it is told to have: name → (vectors, shape)."""

    def __init__(self, embeddings=(), styles=(), model=None):
        self.embeddings = dict(embeddings)
        self.styles = dict(styles)
        self.model = dict(model or MODEL)
        self.writes_hashes = True
        self.encoded = []
        super().__init__(
            {
                "GET /sdapi/v1/embeddings": lambda _: {
                    "loaded": {n: {"vectors": v, "shape": s, "step": None} for n, (v, s) in self.embeddings.items()},
                    "skipped": {},
                },
                "GET /sdapi/v1/options": lambda _: self.model,
                "GET /sdapi/v1/prompt-styles": lambda _: [
                    {"name": n, "prompt": p, "negative_prompt": q} for n, (p, q) in self.styles.items()
                ],
                "POST /sdapi/v1/txt2img": self.draw,
                "POST /sdapi/v1/img2img": self.draw,
            }
        )

    def chunks(self, text):
        """Chunks of one text: lists of (token id or name of an embedding, weight)."""
        names = {tuple(ids_of(name)): name for name in self.embeddings}
        done, chunk, comma = [], [], -1
        for piece, weight in attention(text):
            if piece == "BREAK" and weight == -1:
                done.append(chunk)
                chunk, comma = [], -1
                continue
            ids, position = ids_of(piece), 0
            while position < len(ids):
                if ids[position] == ids_of(",")[0]:
                    comma = len(chunk)
                elif len(chunk) == CHUNK and comma != -1 and CHUNK - comma <= BACKTRACK:
                    moved = chunk[comma + 1 :]
                    done.append(chunk[: comma + 1])
                    chunk, comma = moved, -1
                if len(chunk) == CHUNK:
                    done.append(chunk)
                    chunk, comma = [], -1
                name = next((n for i, n in names.items() if tuple(ids[position : position + len(i)]) == i), None)
                if name is None:
                    chunk.append((ids[position], weight))
                    position += 1
                else:
                    vectors = self.embeddings[name][0]
                    if len(chunk) + vectors > CHUNK:
                        done.append(chunk)
                        chunk, comma = [], -1
                    chunk += [(name, weight)] * vectors
                    position += len(ids_of(name))
        return [*done, chunk] if chunk or not done else done

    def encode(self, prompt):
        """Every chunk that is encoded for a prompt, in each of its states."""
        prompt = re.sub(r"<\w+:[^>]+>", "", re.sub(r"#[^\n]*", "", prompt))
        found = []
        for part in re.split(r"\bAND\b", prompt):
            text, weight = re.match(r"^(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$", part, re.DOTALL).groups()
            for variant in islice(variants(text), 50):
                found += [(float(weight or 1), chunk) for chunk in self.chunks(variant)]
        return found

    def draw(self, fields):
        texts = [fields.get("prompt", "")] + ([fields["hr_prompt"]] if fields.get("hr_prompt") else [])
        for name in fields.get("styles") or ():
            texts = [
                s.replace("{prompt}", t) if "{prompt}" in (s := self.styles[name][0]) else f"{t}, {s}" for t in texts
            ]
        encoded = [chunk for text in texts for chunk in self.encode(text)]
        self.encoded.append(encoded)
        used = sorted({name for _, chunk in encoded for name, _ in chunk if isinstance(name, str)})
        hashes = ", ".join(f"{name}: 0123456789ab" for name in used)
        record = f"{texts[0]}\nNegative prompt: x\nSteps: 1, Sampler: Euler, Hires prompt: {json.dumps(texts[-1])}"
        if used and self.writes_hashes:
            record += f', TI hashes: "{hashes}", Version: v1.10.1'
        count = fields.get("n_iter", 1) * fields.get("batch_size", 1)
        seed = fields.get("seed", -1) if fields.get("seed", -1) >= 0 else random.random()
        info = {
            "infotexts": [record] * count,
            "sd_model_hash": self.model["sd_checkpoint_hash"][:10],
            "sd_model_name": "v1-5-pruned-emaonly",
        }
        pictures = [b64(png(f"{encoded} {seed} {i}")) for i in range(count)]
        return {"images": pictures, "parameters": fields, "info": json.dumps(info)}


def all_begin_with(encoded, prefix):
    """Whether each chunk begins with all vectors of the prefix, at weight 1."""
    return encoded and all(
        [name for name, _ in chunk[: prefix.n]] == [prefix.embedding_name] * prefix.n
        and all(0.9 < weight < 1.15 for _, weight in chunk[: prefix.n])
        for _, chunk in encoded
    )
