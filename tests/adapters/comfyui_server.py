"""A server that speaks ComfyUI's API: it queues a workflow, and reads texts as ComfyUI's tokenizer does.

Written from the behaviour of ComfyUI, without the code under test: the oracle for "the prefix begins every chunk".
"""

import json
import re

from services import Dropped, Service, Status, png

from apl_guard.testing import tiny_tokenizer

CHUNK, KEPT_TOGETHER = 75, 8
TOKENIZER = tiny_tokenizer()


def segments(text, weight=1.0):
    """Pieces of a text with their weights."""
    items, current, depth = [], "", 0
    for c in text:
        if c == "(" and depth == 0:
            items.append(current)
            current = ""
        depth += (c == "(") - (c == ")")
        current += c
        if c == ")" and depth == 0:
            items.append(current)
            current = ""
    for item in filter(None, [*items, current]):
        if len(item) >= 2 and item[0] == "(" and item[-1] == ")":
            inside, inner = item[1:-1], weight * 1.1
            if (colon := inside.rfind(":")) > 0:
                try:
                    inner = float(inside[colon + 1 :])
                    inside = inside[:colon]
                except ValueError:
                    pass
            yield from segments(inside, inner)
        else:
            yield item, weight


class ComfyUIServer(Service):
    """Has the embeddings that it is told to have: name → (vectors, metadata of the file)."""

    def __init__(self, embeddings=()):
        self.embeddings = dict(embeddings)
        self.history = {}
        self.waits = 1
        self.restarts_at = None
        self.swap = lambda graph: graph
        super().__init__(
            {
                "GET /embeddings": lambda _: list(self.embeddings),
                "GET /view_metadata/embeddings": self.metadata,
                "POST /prompt": self.queue,
                "GET /history/*": self.look,
                "GET /queue": self.queued,
                "GET /view": lambda query: png(query["filename"]),
            }
        )

    def metadata(self, query):
        found = self.embeddings.get(query["filename"].removesuffix(".safetensors"))
        if found is None or found[1] is None:
            raise Status(404, b"")
        return found[1]

    def chunks(self, text):
        """Chunks of one text: lists of (token id or name of an embedding, weight)."""
        groups = []
        for segment, weight in segments(text.replace("\\)", "\0\1").replace("\\(", "\0\2")):
            segment = segment.replace("\0\1", ")").replace("\0\2", "(")
            parts = re.split(r"[ \n]embedding:", segment)
            for word in filter(None, [parts[0], *(f"embedding:{part}" for part in parts[1:])]):
                if word.startswith("embedding:"):
                    name, _, word = word[len("embedding:") :].strip("\n").partition(" ")
                    if name in self.embeddings:
                        groups.append([(name, weight)] * self.embeddings[name][0])
                if word:
                    ids = TOKENIZER(word, add_special_tokens=False).input_ids
                    groups.append([(token, weight) for token in ids])
        chunks = [[]]
        for group in groups:
            while group:
                room = CHUNK - len(chunks[-1])
                if len(group) <= room:
                    chunks[-1] += group
                    group = []
                elif len(group) >= KEPT_TOGETHER:
                    chunks[-1] += group[:room]
                    group = group[room:]
                    chunks.append([])
                else:
                    chunks.append([])
        return chunks

    def encoded(self, number=-1):
        """Node → chunks of each text that reaches `positive` of a sampler in a run."""
        graph = self.posted("/prompt")[number]["prompt"]
        found = {}

        def walk(node):
            for field, value in graph[node]["inputs"].items():
                if isinstance(value, list):
                    walk(value[0])
                elif graph[node]["class_type"].startswith("CLIPTextEncode") and isinstance(value, str):
                    found[node, field] = self.chunks(value)

        for node in graph.values():
            if "positive" in node["inputs"]:
                walk(node["inputs"]["positive"][0])
        return found

    def queue(self, body):
        run = f"00000000-{len(self.history):04}"
        graph = self.swap(json.loads(json.dumps(body["prompt"])))
        saves = [name for name, node in graph.items() if node["class_type"] == "SaveImage"]
        files = {
            name: {"images": [{"filename": f"{hash(json.dumps(graph))}-{name}.png", "subfolder": "", "type": "output"}]}
            for name in saves
        }
        status = {"status_str": "success", "completed": True, "messages": []}
        self.history[run] = {"prompt": [1, run, graph, {}, saves], "outputs": files, "status": status}
        self.asked = 0
        return {"prompt_id": run, "number": 1, "node_errors": {}}

    def queued(self, _):
        left = [[1, run, entry["prompt"][2], {}, []] for run, entry in self.history.items() if self.asked <= self.waits]
        return {"queue_running": left[:1], "queue_pending": left[1:]}

    def look(self, run):
        self.asked += 1
        if self.asked == self.restarts_at:  # what it knew was in its memory
            self.history.clear()
            raise Dropped
        if run not in self.history:
            return {}
        return {run: self.history[run]} if self.asked > self.waits else {}


def all_begin_with(encoded, prefix):
    begin = [(prefix.embedding_name, 1.0)] * prefix.n
    return bool(encoded) and all(chunk[: prefix.n] == begin for chunks in encoded.values() for chunk in chunks)
