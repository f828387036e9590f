"""Services that speak OpenAI's images API: `POST /images/generations`.

    guard = Guard(OpenAIImages("https://api.openai.com/v1", api_key=KEY, model="gpt-image-1"), policy="mine.yaml")
    guard("a photo of a man", size="1024x1024").images[0]

No embedding can travel to such a service, so no prefix protects the prompt. What happens in its place is the
policy's `without_prefix`: block, which is the default, or rewrite names to neutral descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from apl_guard.adapters.remote.adapter import TextOnlyAdapter, as_json
from apl_guard.adapters.remote.http_client import HttpClient, RemoteAnswerInvalid
from apl_guard.adapters.remote.images import decode_base64, together
from apl_guard.backend import Generation
from apl_guard.errors import InvalidInput
from apl_guard.prefix import Prefix
from apl_guard.request import Channel, GenerationRequest, argument_name

__all__ = ["OpenAIImage", "OpenAIImages", "OpenAIImagesAdapter", "OpenAIImagesResponse"]

_TEXT_FIELDS = {"prompt": Channel.PROMPT, "negative_prompt": Channel.NEGATIVE_PROMPT}
_CHANNELS = _TEXT_FIELDS | {"image": Channel.IMAGE, "mask": Channel.IMAGE}
_NUMBERS = {"guidance_scale", "n", "num_inference_steps", "output_compression", "seed", "true_cfg_scale"}
# A server that is compatible, and no more, may put any text in front of the prompt that it finds in such a field.
_WORDS: Mapping[str, frozenset[str]] = {
    "background": frozenset({"auto", "opaque", "transparent"}),
    "moderation": frozenset({"auto", "low"}),
    "output_format": frozenset({"jpeg", "png", "webp"}),
    "quality": frozenset({"auto", "hd", "high", "low", "medium", "standard"}),
    "response_format": frozenset({"b64_json", "url"}),
    "style": frozenset({"natural", "vivid"}),
}
_SIZES, _SIZE = "size", re.compile(r"auto|\d{1,5}[x*]\d{1,5}")
# For whom the call is: it goes to those who look after abuse, not to the model.
_USER = "user"
# Below 1 they draw what the negative prompt says.
_GUIDANCE = ("guidance_scale", "true_cfg_scale")


@dataclass(frozen=True)
class OpenAIImage:
    """One entry of `data`."""

    b64_json: str = field(repr=False)
    revised_prompt: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class OpenAIImagesResponse:
    """The answer of the API, with its pictures decoded."""

    created: int | None
    data: list[OpenAIImage]
    images: list[Image.Image]


class OpenAIImages:
    """A client of OpenAI's images API. A call generates unguarded: wrap the client in a `Guard`.

    Args:
        base_url: Where the API is, with its version: `https://api.openai.com/v1`.
        api_key: The key; sent with each request and shown nowhere.
        model: The model, for every call.
        words: Field → values that it may hold besides OpenAI's, such as `{"style": ["photographic"]}`: choices of your
            service, never free text.
        options: For `HttpClient`: `time_limit`, `connect_limit`, `max_answer_bytes`, `insecure_http`, `ca_file`.

    Raises:
        InvalidInput: The URL has another form or is not encrypted, or the key holds blanks or control characters.
        ExtraMissing: httpx is not installed.

    Example: `Guard(OpenAIImages("https://api.openai.com/v1", api_key=KEY), policy="mine.yaml")`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        model: str = "gpt-image-1",
        words: Mapping[str, Iterable[str]] | None = None,
        **options: Any,
    ) -> None:
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise InvalidInput("expected printable ASCII without blanks", where="api_key")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.http = HttpClient(base_url, headers=headers, **options)
        self.model = model
        for name, own in (words or {}).items():
            if isinstance(own, str):
                raise InvalidInput("found a text; expected a list of words", where=f"words.{name}")
        more = {name: frozenset(own) for name, own in (words or {}).items()}
        self.words = {name: _WORDS.get(name, frozenset()) | more.get(name, frozenset()) for name in {*_WORDS, *more}}

    def __repr__(self) -> str:
        return f"OpenAIImages({self.http.base_url!r}, model={self.model!r})"

    def __call__(self, prompt: str, **fields: Any) -> OpenAIImagesResponse:
        """Draw.

        Args:
            prompt: The prompt.
            fields: Fields of the API, such as `n` and `size`.

        Raises:
            RemoteError: The service did not give pictures.
            InvalidInput: A field cannot be written as JSON.
        """
        asked = {"model": self.model, "prompt": prompt, **fields}
        # Newer models always answer like that and refuse to be told so.
        if not self.model.startswith("gpt-image"):
            asked.setdefault("response_format", "b64_json")
        answer = self.http.post("/images/generations", as_json(asked))
        try:
            entries = [OpenAIImage(entry["b64_json"], entry.get("revised_prompt")) for entry in answer["data"]]
            created = answer.get("created")
        except (KeyError, TypeError, AttributeError) as error:
            raise RemoteAnswerInvalid(
                "the answer lacks data with b64_json (a URL is not followed); is this OpenAI's images API?"
            ) from error
        images = together(decode_base64(entry.b64_json) for entry in entries)
        return OpenAIImagesResponse(created if isinstance(created, int) else None, entries, images)


class OpenAIImagesAdapter(TextOnlyAdapter):
    """Makes `OpenAIImages` fulfil `apl_guard.backend.Backend`."""

    def __init__(self, client: OpenAIImages) -> None:
        self._client = client
        self.name = f"openai:{client.model}"

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GenerationRequest:
        """Sort the fields of a call into channels and take a snapshot of them.

        Raises:
            InvalidInput: A prompt is no text, or a field cannot be written as JSON.
            TypeError: There is no prompt, or more than one positional argument.
        """
        if len(args) > 1 or bool(args) == ("prompt" in kwargs):
            raise TypeError("expected the prompt, and fields by name")
        fields = as_json({**({"prompt": args[0]} if args else {}), **kwargs})
        text: dict[Channel, tuple[str, ...]] = {}
        for name, channel in _TEXT_FIELDS.items():
            value = fields.get(name)
            if isinstance(value, str):
                text[channel] = (value,)
            elif value is not None or name == "prompt":
                raise InvalidInput(f"found {type(value).__name__}; expected a text", where=name)
        used = {_CHANNELS[name] for name, value in fields.items() if name in _CHANNELS and value is not None}
        known = {_USER, _SIZES, *_NUMBERS, *self._client.words}
        scales = [fields[name] for name in _GUIDANCE if fields.get(name) is not None]
        if not all(isinstance(scale, int | float) and scale >= 1 for scale in scales):
            used.add(Channel.GUIDANCE)
        unknown = tuple(
            f"value of {name}" if name in known else argument_name(name)
            for name, value in fields.items()
            if name not in _CHANNELS and not (name in known and self._is_harmless(name, value))
        )
        return GenerationRequest(self.name, text, frozenset(used), unknown, fields, carries_prefix=False)

    def generate(self, request: GenerationRequest, prefix: Prefix | None) -> Generation:
        """Generate from the texts of the request.

        Raises:
            PrefixNotApplied: There is a prefix.
            RemoteError: Whatever went wrong with the service.
        """
        if prefix is not None:
            self.check_prefix(prefix)
        texts = {name: request.text[channel][0] for name, channel in _TEXT_FIELDS.items() if channel in request.text}
        output = self._client(**{**request.arguments, **texts})
        return Generation(output, len(output.images))

    def _is_harmless(self, name: str, value: Any) -> bool:
        """Whether a field that the API has, and that is no channel, holds nothing that could be drawn."""
        if value is None or name == _USER:
            return True
        if name in _NUMBERS:
            return isinstance(value, int | float)
        return isinstance(value, str) and (
            _SIZE.fullmatch(value) is not None if name == _SIZES else value in self._client.words[name]
        )
