"""ComfyUI, over `/prompt`, `/history`, `/queue` and `/view`.

    guard = Guard(ComfyUI("https://draw.example:8188", models=["sd15.safetensors"]), prefix="sd15")
    guard(workflow).images[0]

The server must hold the exported prefix in its folder `models/embeddings`, named `apl-…` after the prefix's
digest. The adapter writes `embedding:apl-…` in front of every text that becomes a prompt, in each chunk of 75
tokens. ComfyUI leaves out embeddings that it does not find, and those of another width, with a line in its log;
so the adapter asks for the file before each call, and a workflow may load only models that the platform named.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from PIL import Image

from apl_guard.adapters.prompts.forms import check_decided
from apl_guard.adapters.prompts.readings import weighted_readings
from apl_guard.adapters.prompts.token_bounds import most_tokens
from apl_guard.adapters.remote.adapter import RemoteAdapter, reason
from apl_guard.adapters.remote.http_client import HttpClient, RemoteAnswerInvalid, RemoteError, RemoteRefused
from apl_guard.adapters.remote.images import decode, together
from apl_guard.backend import Generation, Receipt
from apl_guard.errors import ExtraMissing, GuardUnavailable, InvalidInput, PrefixNotApplied
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest

from .graph import Graph, channels_in, read_graph, with_prefix, with_texts
from .links import is_link
from .wait import wait_for

__all__ = ["ComfyUI", "ComfyUIAdapter", "ComfyUIImages", "text_to_image"]

_DIGEST_KEY = "apl_guard_digest"
_RUN = re.compile(r"[A-Za-z0-9-]{1,100}")
# Model types whose tokenizers are told of the folder of embeddings. Others, such as those of Gemma and Qwen, take
# `embedding:…` for words.
_READ_EMBEDDINGS = {"clip_text_model", "t5", "umt5", "mt5", "bert", "llama"}


@dataclass(frozen=True)
class ComfyUIImages:
    """What a workflow gave."""

    images: list[Image.Image]
    """All pictures, in the order of `outputs`."""
    outputs: dict[str, list[Image.Image]]
    """Id of the node that saved them → its pictures."""
    prompt_id: str
    """What the server calls the run."""


class ComfyUI:
    """A client of ComfyUI. A call generates unguarded: wrap the client in a `Guard`.

    Args:
        base_url: Where the server is.
        models: The files of checkpoints, text encoders and denoisers that the prefix was made for, as workflows name
            them. A workflow that loads another is refused.
        harmless: Classes of custom nodes that carry neither text nor images, so that workflows may use them.
        tokenizer: The tokenizer of the text encoder, of transformers. With it a chunk is filled with as many words as
            it takes; without it a word counts as one token for each of its letters.
        time_limit: Seconds for a whole run, waiting in the queue included. A connection that is lost while waiting is
            made again.
        options: For `HttpClient`: `auth`, `connect_limit`, `max_answer_bytes`, `insecure_http`, `ca_file`.

    Raises:
        InvalidInput: The URL has another form, or is not encrypted.
        ExtraMissing: httpx or ftfy is not installed.

    Example: `Guard(ComfyUI("https://draw.example:8188", models=["sd15.safetensors"]), prefix="sd15")`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        models: Iterable[str] = (),
        harmless: Iterable[str] = (),
        tokenizer: Any = None,
        time_limit: float = 600.0,
        **options: Any,
    ) -> None:
        ExtraMissing.check("remote", "ftfy")
        self.http = HttpClient(base_url, time_limit=time_limit, **options)
        self.models = frozenset(models)
        self.harmless = frozenset(harmless)
        self.tokenizer = tokenizer
        self.time_limit = time_limit

    def __repr__(self) -> str:
        return f"ComfyUI({self.http.base_url!r})"

    def __call__(self, workflow: Mapping[str, Any]) -> ComfyUIImages:
        """Run a workflow and fetch its pictures.

        Args:
            workflow: In the API format.

        Raises:
            RemoteError: The server did not give pictures.
        """
        deadline = monotonic() + self.time_limit
        answer = self.http.post("/prompt", {"prompt": dict(workflow), "client_id": uuid.uuid4().hex})
        run = answer.get("prompt_id") if isinstance(answer, dict) else None
        if not isinstance(run, str) or not _RUN.fullmatch(run):
            raise RemoteAnswerInvalid("the answer lacks prompt_id; is this ComfyUI?")
        entry = wait_for(self.http, run, deadline)
        try:
            if _said(entry["prompt"][2]) != _said(workflow):
                raise RemoteAnswerInvalid("the server ran another workflow than the one that was sent")
            outputs: dict[str, list[Image.Image]] = {node: [] for node in entry["outputs"]}
            files = [
                (node, {k: str(f[k]) for k in ("filename", "subfolder", "type")})
                for node, output in entry["outputs"].items()
                for f in output.get("images", ())
            ]
            views = (self.http.get_bytes("/view", file, deadline - monotonic()) for _, file in files)
            images = together(map(decode, views))
            for (node, _), image in zip(files, images, strict=True):
                outputs[node].append(image)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RemoteAnswerInvalid("the history of the run is not of the documented shape") from error
        return ComfyUIImages(images, outputs, run)


class ComfyUIAdapter(RemoteAdapter):
    """Makes `ComfyUI` fulfil `apl_guard.backend.Backend`."""

    name = "comfyui:ComfyUI"
    carries_prefix = True

    def __init__(self, client: ComfyUI) -> None:
        self._client = client

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the nodes of a workflow into channels and take a snapshot of it.

        Raises:
            InvalidInput: It is no workflow, or cannot be written as JSON.
            TypeError: There is not exactly one argument, the workflow.
        """
        if len(args) + len(kwargs) != 1 or kwargs.keys() - {"workflow"}:
            raise TypeError("expected one argument, the workflow in the API format")
        workflow = args[0] if args else kwargs["workflow"]
        try:
            copied = json.loads(json.dumps(workflow, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"cannot be written as JSON ({type(error).__name__})", where="workflow") from error
        graph = read_graph(copied, self._client.models, self._client.harmless)
        text = {
            channel: graph.texts(places)
            for channel, places in (
                (Channel.PROMPT, graph.prompts),
                (Channel.NEGATIVE_PROMPT, graph.negative_prompts),
            )
            if places
        }
        arguments = {"graph": graph}
        return GenerationRequest(self.name, text, graph.channels, graph.unknown, arguments, readings=weighted_readings)

    def check_prefix(self, prefix: Prefix) -> None:
        """Ask the server whether it has the embedding.

        Raises:
            PrefixNotApplied: It has not, or another, or reads none for a text encoder of the prefix.
            GuardUnavailable: It cannot be asked.
        """
        if without := sorted({each.kind for each in prefix.metadata.traits.values()} - _READ_EMBEDDINGS):
            raise PrefixNotApplied(f"ComfyUI reads no embedding for a text encoder '{without[0]}', so no prefix")
        name = prefix.embedding_name
        try:
            found = self._client.http.get("/embeddings")
            has_it = name in list(found)
            said = self._said_digest(name) if has_it else None
        except (RemoteError, TypeError) as error:
            raise GuardUnavailable(f"{self._client} does not say which embeddings it has: {reason(error)}") from error
        if not has_it:
            raise PrefixNotApplied(
                f"{self._client} has no embedding '{name}'; write it with `apl-guard prefix export` into the server's "
                "folder models/embeddings"
            )
        if said is not None and said != prefix.digest:
            raise PrefixNotApplied(f"'{name}' on the server is the export of another prefix, of digest {said[:12]}")

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate, with the prefix in front of every prompt of the workflow.

        Raises:
            GuardUnavailable: The policy made texts of the request that open a channel nobody decided about.
            PrefixNotApplied: The server has not got the prefix.
            RemoteError: Whatever went wrong with the server.
        """
        check_decided(frozenset().union(*(channels_in(t) for found in request.text.values() for t in found)), request)
        graph: Graph = request.arguments["graph"]
        for channel, places in ((Channel.PROMPT, graph.prompts), (Channel.NEGATIVE_PROMPT, graph.negative_prompts)):
            graph = with_texts(graph, places, request.text.get(channel, ()))
        if prefix is None:
            output = self._client(graph.nodes)
            return Generation(output, len(output.images))
        self.check_prefix(prefix)
        count = partial(most_tokens, tokenizer=self._client.tokenizer, syntax="()\\")
        output = self._client(with_prefix(graph, prefix.embedding_name, prefix.n, count))
        rows = (prefix.n,) * len(request.prompts)
        return Generation(output, len(output.images), Receipt(dict.fromkeys(prefix.metadata.widths, rows)))

    def _said_digest(self, name: str) -> str | None:
        """The digest in the header of the file, where the server shows it."""
        try:
            metadata = self._client.http.get("/view_metadata/embeddings", {"filename": f"{name}.safetensors"})
        except RemoteRefused as error:
            if error.status == 404:  # an old server, or a file without metadata
                return None
            raise
        digest = metadata.get(_DIGEST_KEY) if isinstance(metadata, dict) else None
        return digest if isinstance(digest, str) else None


def _said(workflow: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Every text, link and class of a workflow. Numbers the server may write in another way."""
    return {
        (str(name), field): value
        for name, node in workflow.items()
        for field, value in (*node["inputs"].items(), ("class_type", node["class_type"]))
        if isinstance(value, str) or is_link(value)
    }


def text_to_image(
    checkpoint: str,
    prompt: str,
    negative_prompt: str = "",
    *,
    seed: int = 0,
    steps: int = 20,
    cfg: float = 7.0,
    width: int = 512,
    height: int = 512,
    batch_size: int = 1,
) -> dict[str, Any]:
    """The plain workflow: one checkpoint, one prompt, one sampler, one output.

    Args:
        checkpoint: File of the checkpoint, as the server names it.
        prompt: The prompt.
        negative_prompt: What to steer away from.
        seed: Seed of the noise.
        steps: Denoising steps.
        cfg: Guidance scale.
        width: In pixels.
        height: In pixels.
        batch_size: Number of pictures.

    Example:
        >>> text_to_image("sd15.safetensors", "a cat")["3"]["inputs"]["text"]
        'a cat'
    """
    sampling = {
        "seed": seed,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    size = {"width": width, "height": height, "batch_size": batch_size}
    links = {"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["2", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "EmptyLatentImage", "inputs": size},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": negative_prompt, "clip": ["1", 1]}},
        "5": {"class_type": "KSampler", "inputs": sampling | links},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"filename_prefix": "apl-guard", "images": ["6", 0]}},
    }
