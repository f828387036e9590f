"""AUTOMATIC1111's web UI and Forge, over `/sdapi/v1/txt2img` and `/sdapi/v1/img2img`.

    guard = Guard(A1111("https://draw.example:7860"), prefix="sd15")
    guard("a photo of a man", steps=20).images[0]

The server must hold the exported prefix in its folder `embeddings`, named `apl-…` after the prefix's digest. The
adapter writes that name in front of every text that reaches the text encoder: prompt and high-resolution prompt,
behind each `AND` and `BREAK`, in each chunk of 75 tokens, with styles resolved first. It asks the server before
each call whether it still has the embedding, and releases nothing unless the answer names it as used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from apl_guard.adapters.prompts.forms import canonical_forms, check_decided
from apl_guard.adapters.prompts.readings import edited_readings
from apl_guard.adapters.prompts.syntax import draws_the_negative_prompt, prefixed, read_a1111
from apl_guard.adapters.prompts.token_bounds import most_tokens
from apl_guard.adapters.remote.adapter import RemoteAdapter, as_json, reason
from apl_guard.adapters.remote.http_client import HttpClient, RemoteAnswerInvalid
from apl_guard.adapters.remote.images import decode_base64, together
from apl_guard.backend import Generation, Receipt
from apl_guard.errors import ExtraMissing, GuardUnavailable, InvalidInput, PrefixNotApplied
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, argument_name

from .answers import answer_of, is_checkpoint, reads_break, stem, unreported
from .fields import (
    CHANNELS,
    HARMLESS,
    HARMLESS_SETTINGS,
    TEXT_FIELDS,
    reads_early_layer,
    turns_guidance_round,
)

__all__ = ["A1111", "A1111Adapter", "A1111Images"]

# Without it an answer does not say which embeddings were used.
_RECEIPT_SETTING = {"textual_inversion_add_hashes_to_infotext": True}
# What is no `True`, such as 0 or null, leaves the settings of a call to those that follow.
_RESTORED = "override_settings_restore_afterwards"
_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class A1111Images:
    """What a call gives: the answer of the API, with its pictures decoded and `info` parsed.

    The representation shows the images only, for the rest holds the prompt.
    """

    images: list[Image.Image]
    parameters: dict[str, Any] = field(repr=False)
    info: dict[str, Any] = field(repr=False)


class A1111:
    """A client of AUTOMATIC1111's or Forge's API. A call generates unguarded: wrap the client in a `Guard`.

    Args:
        base_url: Where the server is; the API is expected at `/sdapi/v1` below it.
        checkpoint: Short hash of the checkpoint that the prefix was made for. None takes the one that is loaded
            when the guard is made.
        tokenizer: The tokenizer of the server's text encoder, of transformers. With it, chunks are filled; without
            it, a word counts as one token for each of its bytes, which makes many chunks.
        options: For `HttpClient`: `auth`, `time_limit`, `connect_limit`, `max_answer_bytes`, `insecure_http`,
            `ca_file`.

    Raises:
        InvalidInput: The URL has another form, or is not encrypted.
        ExtraMissing: httpx or ftfy is not installed.

    Example: `Guard(A1111("https://draw.example:7860"), prefix="sd15")`.
    """

    def __init__(self, base_url: str, *, checkpoint: str | None = None, tokenizer: Any = None, **options: Any) -> None:
        ExtraMissing.check("remote", "ftfy")
        self.http = HttpClient(base_url, **options)
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"A1111({self.http.base_url!r})"

    def __call__(self, prompt: str = "", /, **fields: Any) -> A1111Images:
        """Draw.

        Args:
            prompt: The prompt.
            fields: Fields of the API, such as `steps`. With `init_images` (base64 or PIL) the call goes to img2img.

        Raises:
            RemoteError: The server did not give images.
            InvalidInput: A field cannot be written as JSON.
        """
        return self.send({"prompt": prompt, **fields})

    def send(self, fields: Mapping[str, Any]) -> A1111Images:
        """Draw, with every field by name.

        Raises:
            RemoteError: The server did not give images.
            InvalidInput: A field cannot be written as JSON.
        """
        endpoint = "img2img" if fields.get("init_images") else "txt2img"
        answer = self.http.post(f"/sdapi/v1/{endpoint}", as_json(fields))
        try:
            info = json.loads(answer["info"])
            return A1111Images(
                together(map(decode_base64, answer["images"] or ())), dict(answer["parameters"]), dict(info)
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise RemoteAnswerInvalid(
                f"the answer lacks images, parameters or info ({type(error).__name__}); is this AUTOMATIC1111's API?"
            ) from error


class A1111Adapter(RemoteAdapter):
    """Makes `A1111` fulfil `apl_guard.backend.Backend`."""

    name = "a1111:A1111"
    carries_prefix = True

    def __init__(self, client: A1111) -> None:
        self._client = client
        self._checkpoint = client.checkpoint
        self._embeddings: dict[str, Any] | None = None
        self._reads_break = True

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the fields of a call into channels and take a snapshot of them.

        Raises:
            InvalidInput: A prompt is no text, or a field cannot be written as JSON.
            TypeError: There is more than one positional argument.
            RemoteError: The server does not say which styles or embeddings it has.
        """
        if len(args) > 1 or (args and "prompt" in kwargs):
            raise TypeError("expected the prompt and fields by name")
        fields = as_json({"prompt": args[0] if args else "", **kwargs})
        known = frozenset(self._known_embeddings())
        text: dict[Channel, tuple[str, ...]] = {}
        # Older servers make texts of numbers: 0 is any checkpoint with "0" in its name.
        used = {CHANNELS[name] for name, value in fields.items() if name in CHANNELS and value not in _NOTHING}
        texts = self._with_styles(fields)
        for name, found in ((name, texts[name]) for name in TEXT_FIELDS if name in texts):
            channel = TEXT_FIELDS[name]
            fields[name] = read_a1111(found, known).text
            text[channel] = (*text.get(channel, ()), fields[name])
            used |= {channel} | _channels_in(found, channel, known) | _channels_in(fields[name], channel, known)
        for name in TEXT_FIELDS.keys() - {"prompt"}:
            if not fields.get(name):
                fields.pop(name, None)  # empty means the same as absent
        fields.pop("styles", None)  # they are in the texts now
        if turns_guidance_round(fields):
            used.add(Channel.GUIDANCE)
        settings = _of_type(fields, "override_settings", dict)
        if settings.keys() - HARMLESS_SETTINGS or fields.get(_RESTORED, True) is not True:
            used.add(Channel.EXTENSION)
        if reads_early_layer(settings):
            used.add(Channel.ATTENTION)
        classified = TEXT_FIELDS.keys() | CHANNELS.keys() | HARMLESS
        unknown = tuple(argument_name(name) for name in fields.keys() - classified)
        arguments = {"fields": fields, "embeddings": known}
        return GenerationRequest(self.name, text, frozenset(used), unknown, arguments, readings=edited_readings)

    def check_prefix(self, prefix: Prefix) -> None:
        """Ask the server whether it has the embedding, loaded for the model that it has.

        Raises:
            PrefixNotApplied: It has not, or another.
            GuardUnavailable: It cannot be asked.
        """
        try:
            self._embeddings = dict(self._client.http.get("/sdapi/v1/embeddings")["loaded"])
            options = self._client.http.get("/sdapi/v1/options")
            found = (str(options.get("sd_checkpoint_hash") or ""), stem(str(options["sd_model_checkpoint"])))
            self._reads_break = reads_break(options)
        except Exception as error:
            raise GuardUnavailable(f"{self._client} does not say what it has loaded: {reason(error)}") from error
        entry = self._embeddings.get(prefix.embedding_name)
        wanted = {"vectors": prefix.n, "shape": sum(prefix.metadata.widths.values())}
        if not isinstance(entry, dict):
            raise PrefixNotApplied(
                f"{self._client} has no embedding '{prefix.embedding_name}' loaded; write it with `apl-guard prefix "
                "export` into the server's folder embeddings, and refresh. If it is there, it does not fit the model"
            )
        if any(entry.get(key) != value for key, value in wanted.items()):
            raise PrefixNotApplied(f"'{prefix.embedding_name}' on the server is of another size than {wanted}")
        if self._checkpoint is None:
            self._checkpoint = found[0] or found[1]
        if not is_checkpoint(self._checkpoint, found):
            raise PrefixNotApplied(f"{self._client} has another checkpoint loaded than '{self._checkpoint}'")

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate, with the prefix in front of every text.

        Raises:
            GuardUnavailable: The texts open a channel nobody decided about, as the policy or the server made it so.
            PrefixNotApplied: The server has not got the prefix, or did not use it.
            RemoteError: Whatever went wrong with the server.
        """

        def opened_with(embeddings: frozenset[str]) -> frozenset[Channel]:
            said = [
                _channels_in(text, channel, embeddings) for channel, found in request.text.items() for text in found
            ]
            return frozenset().union(*said)

        check_decided(opened_with(request.arguments["embeddings"]), request)
        if prefix is not None:
            self.check_prefix(prefix)
        if opened_with(frozenset(self._known_embeddings(anew=prefix is None))) - request.used:
            raise GuardUnavailable("the server has got an embedding of the request since it was read; send it again")
        if prefix is None:
            output = self._client.send(_fields(request))
            return Generation(output, len(output.images))
        fields = _fields(request)
        fields["override_settings"] = {**(fields.get("override_settings") or {}), **_RECEIPT_SETTING}
        by_region = bool(fields.get("alwayson_scripts"))
        count = partial(most_tokens, tokenizer=self._client.tokenizer, syntax="()[]|:\\")
        for name, channel in TEXT_FIELDS.items():
            if channel == Channel.PROMPT and name in fields:
                fields[name] = prefixed(fields[name], prefix.embedding_name, prefix.n, count, by_region=by_region)
        if not self._reads_break and any("BREAK" in fields.get(name, "") for name in TEXT_FIELDS):
            raise PrefixNotApplied(
                f"{self._client} reads no BREAK, as its option `emphasis` is off, so the prefix would stand before "
                "75 tokens only; make the prompt shorter, or set the option to Original"
            )
        output = self._client.send(fields)
        self._check_use(output, prefix)
        rows = (prefix.n,) * len(request.prompts)
        return Generation(output, len(output.images), Receipt(dict.fromkeys(prefix.metadata.widths, rows)))

    def _known_embeddings(self, *, anew: bool = False) -> Mapping[str, Any]:
        if anew or self._embeddings is None:
            self._embeddings = answer_of(self._client.http.get("/sdapi/v1/embeddings"), "loaded")
        return self._embeddings

    def _with_styles(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The texts as the server makes them: each style goes round a text or behind it."""
        texts = {name: _text(fields[name], name) for name in TEXT_FIELDS if fields.get(name) or name == "prompt"}
        for name in _of_type(fields, "styles", list):
            known = self._client.http.get("/sdapi/v1/prompt-styles")
            if not isinstance(known, list):
                raise RemoteAnswerInvalid("the answer is no list of styles; is this AUTOMATIC1111's API?")
            for entry in known:
                if isinstance(entry, dict) and entry.get("name") == name:
                    for key in ("prompt", "negative_prompt"):
                        for part in (key, f"hr_{key}"):
                            if entry.get(key) and (part in texts or part == "negative_prompt"):
                                texts[part] = _merged(str(entry[key]), texts.get(part, ""))
        return texts

    def _check_use(self, output: A1111Images, prefix: Prefix) -> None:
        """Believe that the prefix was used only where the record of each picture says so."""
        if lack := unreported(output.info, len(output.images), prefix.embedding_name):
            raise PrefixNotApplied(f"{self._client} {lack}")
        found = (str(output.info.get("sd_model_hash") or ""), stem(str(output.info.get("sd_model_name") or "")))
        if not is_checkpoint(str(self._checkpoint), found):
            raise PrefixNotApplied(f"{self._client} drew with another checkpoint than '{self._checkpoint}'")


def _fields(request: GenerationRequest) -> dict[str, Any]:
    """The fields with the request's texts. A policy may have made wide letters in them those of tags and comments."""
    fields = dict(request.arguments["fields"])
    texts = {channel: iter(found) for channel, found in request.text.items()}
    return fields | {
        name: read_a1111(next(texts[channel])).text
        for name, channel in TEXT_FIELDS.items()
        if fields.get(name) is not None
    }


def _channels_in(text: str, channel: Channel, known: frozenset[str]) -> frozenset[Channel]:
    """The channels that a text opens by its syntax, or that its canonical form opens."""
    forms = canonical_forms(text)
    found = frozenset[Channel]().union(*(read_a1111(form, known).channels for form in forms))
    is_weak = channel == Channel.PROMPT and any(map(draws_the_negative_prompt, forms))
    return found | {Channel.GUIDANCE} if is_weak else found


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"found {type(value).__name__}; expected a text", where=where)
    return value


def _of_type(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name) or kind()
    if not isinstance(value, kind):
        raise InvalidInput(f"found {type(value).__name__}; expected {kind.__name__}", where=name)
    return value


def _merged(style: str, text: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)
