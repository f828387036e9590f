"""Services and functions into which no prefix can travel: the policy decides what happens instead, never nothing."""

import functools
import io
import json
from concurrent.futures import Future

import pytest
from PIL import Image
from services import FAULTS, TIGHT, Service, Status, b64, png, raising, records

from apl_guard import Guard, GuardUnavailable, InvalidInput, OpenAIImages, Policy, PolicyBlocked, PrefixNotApplied
from apl_guard.adapters.remote.http_client import RemoteAnswerInvalid, RemoteError, RemoteRefused

KEY = "sk-secret-0123456789"


def policy(without_prefix="rewrite", **when):
    """Names of a list are rewritten where no prefix can reach."""
    document = {
        "apiVersion": "apl-guard/v1",
        "kind": "Policy",
        "metadata": {"name": "mine", "version": 1},
        "spec": {
            "without_prefix": without_prefix,
            "names": [{"id": "people", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}],
            "rules": [
                {"id": "prompts", "when": {"channels": ["prompt"], **when}, "then": {"action": "anonymize"}},
                {"id": "names", "when": {"channels": ["prompt"], "names": ["people"]}, "then": {"action": "rewrite"}},
                {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}},
            ],
        },
    }
    return Policy.model_validate(document)


@pytest.fixture
def service():
    def draw(body):
        count = body.get("n", 1)
        data = [{"b64_json": b64(png(json.dumps(body) + str(i))), "revised_prompt": "x"} for i in range(count)]
        return {"created": 1, "data": data}

    service = Service({"POST /v1/images/generations": draw})
    yield service
    service.close()


@pytest.fixture
def client(service):
    return OpenAIImages(f"{service.url}/v1", KEY, "dall-e-3")


def draw(prompt):
    """A function of a prompt."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return [Image.new("L", (1, 1), len(p)) for p in prompts]


def test_the_client_speaks_the_api(service, client):
    """The documented path, header and fields; pictures as bytes, never as URLs."""
    answer = client("a cat", n=2, size="256x256")

    body = {"model": "dall-e-3", "prompt": "a cat", "n": 2, "size": "256x256", "response_format": "b64_json"}
    assert service.posted("/v1/images/generations") == [body]
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert [image.size for image in answer.images] == [(8, 8)] * 2
    assert answer.data[0].revised_prompt == "x"
    OpenAIImages(f"{service.url}/v1", KEY, "gpt-image-1")("a cat")
    assert "response_format" not in service.posted("/v1/images/generations")[-1]


def test_the_key_is_shown_nowhere(client, service):
    """Not in representations, not in errors."""
    service.routes["POST /v1/images/generations"] = raising(Status(401, b"{}"))
    with pytest.raises(RemoteRefused) as caught:
        client("a cat")

    assert KEY not in repr(client) + repr(client.http) + str(caught.value)
    with pytest.raises(InvalidInput, match="api_key") as wrong:
        OpenAIImages("https://api.example/v1", "sk-secret\r\nX-Evil: 1")
    assert "secret" not in str(wrong.value)


class TestWithoutAPrefix:
    """The default policy blocks; one that rewrites replaces names; the record says that there was no prefix."""

    @pytest.mark.parametrize("kind", ["openai", "function"])
    def test_blocked_by_default(self, client, service, tmp_path, kind):
        """With an error that says why; nothing is drawn."""
        called = []
        guard = Guard(client if kind == "openai" else lambda p: called.append(p), audit=tmp_path)
        with pytest.raises(PolicyBlocked, match="no prefix can reach this backend"):
            guard("a photo of a man")

        assert called == service.seen == []
        decision, outcome = records(tmp_path)
        assert decision["carries_prefix"] is False
        assert (outcome["result"], outcome["prefix"]) == ("blocked", None)

    @pytest.mark.parametrize("kind", ["openai", "function"])
    def test_rewritten(self, client, service, tmp_path, kind):
        """The name does not reach the service."""
        called = []
        function = functools.partial(lambda sink, prompt: sink.append(prompt) or draw(prompt), called)
        guard = Guard(client if kind == "openai" else function, policy(), audit=tmp_path)
        guard("a photo of Mara Voss in a park")

        sent = [body["prompt"] for body in service.posted("/v1/images/generations")] + called
        assert sent == ["a photo of a woman in a park"]
        decision, outcome = records(tmp_path)
        assert (decision["effective_action"], outcome["result"], outcome["images"]) == ("rewrite", "passed", 1)
        assert (decision["carries_prefix"], outcome["prefix"]) == (False, None)

    def test_a_prefix_is_never_pretended(self, client, prefix):
        """Asked for one all the same, an adapter refuses."""
        for pipe in (client, draw):
            backend = Guard(pipe, policy())._parts.backend
            with pytest.raises(PrefixNotApplied):
                backend.generate(backend.read(("a cat",), {}), prefix)
            with pytest.raises(PrefixNotApplied):
                backend.check_prefix(prefix)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image": "aGk="}, "image"),
        ({"mask": "aGk="}, "image"),
        ({"guidance_scale": 0}, "guidance"),
        ({"true_cfg_scale": "4"}, "guidance"),
        ({"model": "other"}, "model"),
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"surprise": 1}, "surprise"),
        ({"style": "Mara Voss"}, "value of style"),
        ({"quality": "hd, Mara Voss"}, "value of quality"),
        ({"size": "256x256 Mara Voss"}, "value of size"),
        ({"seed": "Mara Voss"}, "value of seed"),
        ({"style": ["vivid"]}, "value of style"),
    ],
    ids=str,
)
def test_fields_that_bring_other_content_are_blocked(client, service, fields, named):
    """Known ones by their channel, unknown ones by their name; previews are pictures, too."""
    with pytest.raises(PolicyBlocked, match=named):
        Guard(client, policy())("a cat", **fields)
    assert service.seen == []


def test_words_of_the_api_and_those_that_the_operator_names_go_through(service):
    """A choice is no text about the picture; which choices a compatible service has, its operator says."""
    client = OpenAIImages(f"{service.url}/v1", KEY, "x", words={"style": ["photographic"], "aspect": ["wide"]})
    fields = {"style": "photographic", "quality": "hd", "size": "1024*768", "n": 1, "aspect": "wide", "user": "u 7"}

    Guard(client, policy())("a cat", **fields)

    assert fields.items() <= service.posted("/v1/images/generations")[-1].items()
    Guard(client, policy())("a cat", style="vivid")
    with pytest.raises(PolicyBlocked, match="value of aspect"):
        Guard(client, policy())("a cat", aspect="Mara Voss")
    with pytest.raises(InvalidInput, match=r"words.style: found a text; expected a list"):
        OpenAIImages(f"{service.url}/v1", KEY, "x", words={"style": "photographic"})


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_service(service, tmp_path, fault):
    """One request, no picture, an error of the backend, and a record."""
    service.routes["POST /v1/images/generations"] = raising(FAULTS[fault])
    guard = Guard(OpenAIImages(f"{service.url}/v1", KEY, "x", **TIGHT), policy(), audit=tmp_path)

    with pytest.raises(RemoteError):
        guard("a cat")
    assert len(service.seen) == 1
    assert records(tmp_path)[-1]["result"] == "backend_error"


def test_a_url_is_not_followed(client, service):
    """A picture that the service only points at is no picture."""
    service.routes["POST /v1/images/generations"] = lambda _: {"data": [{"url": "http://127.0.0.1:1/a.png"}]}

    with pytest.raises(RemoteAnswerInvalid, match="URL"):
        Guard(client, policy())("a cat")


def test_functions_of_all_kinds():
    """Functions, bound methods and partial functions; the result is the function's own."""

    class Painter:
        def paint(self, prompt):
            return {"picture of": prompt}

    guard = Guard(Painter().paint, policy())
    assert guard("a cat") == {"picture of": "a cat"}
    assert "Painter.paint" in repr(guard)
    assert [i.size for i in Guard(draw, policy())(["a", "b"])] == [(1, 1), (1, 1)]
    assert Guard(functools.partial(lambda style, prompt: style + prompt, "oil: "), policy())("a cat") == "oil: a cat"
    with pytest.raises(InvalidInput, match="functions of a prompt"):
        Guard(Painter(), policy())


def test_wrong_arguments(client, service):
    """Nothing is drawn."""
    for pipe in (client, draw):
        guard = Guard(pipe, policy())
        for wrong in ((), ("a", "b")):
            with pytest.raises(TypeError):
                guard(*wrong)
        with pytest.raises(InvalidInput):
            guard(7)
        with pytest.raises(AttributeError):
            _ = guard.model
    with pytest.raises(InvalidInput):
        Guard(client, policy())(["a", "b"])
    with pytest.raises(PolicyBlocked, match="size"):
        Guard(draw, policy())("a", size=1)
    assert service.seen == []


def test_errors_of_a_function_pass_unchanged(tmp_path):
    """The same type and message; the record holds the type only."""

    def broken(prompt):
        raise KeyError(prompt)

    with pytest.raises(KeyError, match="a cat"):
        Guard(broken, policy(), audit=tmp_path)("a cat")
    assert records(tmp_path)[-1]["error"] == "KeyError"


async def draw_later(prompt):
    """An `async` function, which draws when it is awaited."""


def draw_one_by_one(prompt):
    """A generator, which draws when it is asked for the next picture."""
    yield prompt


async def draw_one_by_one_later(prompt):
    """Both."""
    yield prompt


@pytest.mark.parametrize("later", [draw_later, draw_one_by_one, draw_one_by_one_later])
def test_no_record_of_pictures_that_are_not_drawn_yet(later, tmp_path):
    """A function that draws after it has returned is refused, and where only its answer shows that, it gives none."""
    with pytest.raises(InvalidInput, match="draws after it has returned"):
        Guard(later, policy())

    with pytest.raises(GuardUnavailable, match="draws after it has returned"):
        Guard(lambda prompt: later(prompt), policy(), audit=tmp_path)("a cat")
    assert (records(tmp_path)[-1]["result"], records(tmp_path)[-1]["images"]) == ("failed", 0)


@pytest.mark.parametrize(
    "answer",
    [lambda prompt: Future(), lambda prompt: [draw_later(prompt)], lambda prompt: (draw_one_by_one(prompt),)],
    ids=["future", "list of coroutines", "tuple of generators"],
)
def test_no_record_of_pictures_that_a_function_promises(answer, tmp_path):
    """One handed to a pool of threads, or one promise for each prompt."""
    with pytest.raises(GuardUnavailable, match="draws after it has returned"):
        Guard(answer, policy(), audit=tmp_path)("a cat")
    assert records(tmp_path)[-1]["images"] == 0


def test_a_function_may_return_a_file():
    """What can be read line by line is there all the same."""
    assert Guard(lambda prompt: io.BytesIO(b"a picture"), policy())("a cat").getvalue() == b"a picture"


def test_a_function_that_returns_nothing_gave_no_picture():
    """So the record counts none."""
    assert Guard(lambda prompt: None, policy()).generate("a cat").outcome.images == 0


def test_pictures_that_are_too_large_together_are_refused(client, monkeypatch):
    """However many a server sends, and however small they are packed."""
    monkeypatch.setattr("apl_guard.adapters.remote.images._MAX_PIXELS_TOGETHER", 1)
    with pytest.raises(RemoteAnswerInvalid, match="together"):
        client("a cat", n=2)
