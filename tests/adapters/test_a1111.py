"""The guard in front of AUTOMATIC1111's API: the prefix begins every chunk of all that is encoded, or no picture."""

import json
import re

import pytest
from a1111_server import TOKENIZER, A1111Server
from hypothesis import example, given, settings
from hypothesis import strategies as st
from services import FAULTS, TIGHT, Status, raising, records

from apl_guard import (
    A1111,
    Guard,
    GuardUnavailable,
    InvalidInput,
    Policy,
    PolicyBlocked,
    PrefixNotApplied,
    PrefixNotFound,
)
from apl_guard.adapters.a1111 import A1111Adapter
from apl_guard.adapters.http_client import RemoteError
from apl_guard.adapters.prompt_syntax import byte_bound, prefixed, read_a1111
from apl_guard.request import Channel


@pytest.fixture
def server(prefix):
    server = A1111Server({prefix.embedding_name: (prefix.n, 32), "mara-voss": (4, 32)})
    yield server
    server.close()


@pytest.fixture
def guard(server, prefix, tmp_path):
    return Guard(A1111(server.url), prefix=prefix, audit=tmp_path / "audit")


def allowing(*channels):
    """The default policy, with some channels permitted."""
    rules = [
        {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
        {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}},
        {"id": "open", "when": {"channels": list(channels)}, "then": {"action": "unsafe_allow"}},
    ]
    return Policy(
        apiVersion="apl-guard/v1", kind="Policy", metadata={"name": "open", "version": 1}, spec={"rules": rules}
    )


def all_begin_with(encoded, prefix):
    """Whether each chunk begins with all vectors of the prefix, at weight 1."""
    return encoded and all(
        [name for name, _ in chunk[: prefix.n]] == [prefix.embedding_name] * prefix.n
        and all(0.9 < weight < 1.15 for _, weight in chunk[: prefix.n])
        for _, chunk in encoded
    )


def test_the_prefix_is_in_the_prompt_and_the_answer_is_the_clients(guard, server, prefix, tmp_path):
    """Same type, same fields, picture of the prompt with the prefix; both records are written."""
    made = guard.generate("a photo of Mara Voss", steps=3, seed=1, batch_size=2)

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} a photo of Mara Voss"
    assert sent["steps"] == 3
    bare = A1111(server.url)(f"{prefix.embedding_name} a photo of Mara Voss", steps=3, seed=1, batch_size=2)
    assert type(made.output) is type(bare)
    assert [image.tobytes() for image in made.output.images] == [image.tobytes() for image in bare.images]
    assert made.output.images[0].tobytes() != A1111(server.url)("a photo of Mara Voss", seed=1).images[0].tobytes()
    decision, outcome = records(tmp_path / "audit")
    assert decision["action"] == "anonymize"
    assert (outcome["result"], outcome["images"], outcome["prefix_digest"]) == ("passed", 2, prefix.digest)
    assert outcome["prefix_rows"] == {"text_encoder": [10]}


@pytest.mark.parametrize(
    "prompt",
    [
        "", "a man", "a man " * 60, "a man, " * 60, "a (man:1.2) in [red]", "a man BREAK a dog", "BREAK", "a AND b",
        "a man :1.2 AND a dog :0.5", "[a man:a dog:0.5] in a park", "[a|b|c] man", r"a \(man\)", "(a man", "a) man] :",
        "((a)) man", "a # comment ( \n man", "a man\nBREAK\na dog", "ANDROID BREAKFAST", "日本語のプロンプト " * 9,
        "(a man in a park:1.1) " * 20, "a man AND " * 5 + "a dog", "x" * 200,
    ],
)  # fmt: skip
def test_every_chunk_begins_with_the_prefix(guard, server, prefix, prompt):
    """For each kind of syntax that is kept, however long."""
    guard(prompt, enable_hr=True, hr_prompt=prompt)

    assert all_begin_with(server.encoded[-1], prefix)


WORDS = st.sampled_from(
    ["a", "man", "Mara", "Voss", ",", "BREAK", "AND", "AND :", ":2", "(", ")", "[", "]", "|", ":", ":0.5]", ":1.5)",
     "\\", "BRE", "AK", "#", "\n", "é", "__x__", "apl-0123456789abcdef", "mara-voss", "mara", "-", "-1",
     "<lora:x:1>", "E", "long" * 9]
)  # fmt: skip


@pytest.fixture(scope="module")
def shared_server(prefix):
    server = A1111Server({prefix.embedding_name: (prefix.n, 32), "mara-voss": (4, 32)})
    yield server
    server.close()


@settings(max_examples=200)
@given(st.lists(WORDS, max_size=60), st.sampled_from(["", " "]))
@example(["BR", "[", "E", "|", "x", "]", "AK", "Mara"], "")
@example(["(", "BREAK", ":0)", "Mara"], " ")
@example(["BRE<lora:x:0>AK", "Mara"], " ")
@example(["BRE", "#", "\n", "AK", "Mara"], "")
@example(["Mara", "AND", ":", "-1"], " ")
def test_no_prompt_gets_a_chunk_without_the_prefix(shared_server, prefix, words, between):
    """Whatever is typed is blocked, or cannot be cut, or begins every chunk with the prefix at positive weight."""
    text = between.join(words)
    syntax = read_a1111(text, shared_server.embeddings)
    if syntax.channels:
        return
    try:
        sent = prefixed(syntax.text, prefix.embedding_name, prefix.n, byte_bound)
    except PrefixNotApplied:
        return

    encoded = shared_server.encode(sent)

    assert all_begin_with(encoded, prefix), sent
    assert all(weight >= 0 for weight, _ in encoded), sent


@given(st.lists(WORDS, max_size=40))
def test_nothing_of_the_prompt_is_lost(shared_server, words):
    """Besides tags and comments, what stands in the prompt stands in what is sent, in its order."""
    text = " ".join(w for w in words if w not in ("#", "\\"))
    syntax = read_a1111(text)
    try:
        sent = prefixed(syntax.text, "APL", 10, byte_bound)
    except PrefixNotApplied:
        return

    def content(of):
        return re.sub(r"\s+|BREAK|APL|<lora:x:1>", "", of)

    assert content(sent) == content(text)


@pytest.mark.parametrize(
    ("prompt", "channel"),
    [
        ("a man <lora:mara:1>", "adapter_weights"),
        ("a man <hypernet:mara:1>", "adapter_weights"),
        ("a man, mara-voss", "textual_inversion"),
        ("a man, MARA - VOSS", "textual_inversion"),
        ("xmara-voss", "textual_inversion"),
        ("(Mara Voss:9)", "prompt_syntax"),
        ("(Mara Voss:-1)", "prompt_syntax"),
        ("((((((((Mara Voss))))))))", "prompt_syntax"),
        ("((Mara Voss:1.9):1.9)", "prompt_syntax"),
        ("(Mara Voss:1[0|5]0)", "prompt_syntax"),
        ("(a BREAK b:0.1)", "prompt_syntax"),
        ("BR[E|x]AK Mara Voss", "prompt_syntax"),
        ("Mara Voss AND :-1", "prompt_syntax"),
        ("__celebrity__", "prompt_syntax"),
        ("{Mara Voss|a cat}", "prompt_syntax"),
        ("apl-0123456789abcdef", "prompt_syntax"),
        ("APL-0123456789abcdef", "prompt_syntax"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "hr_prompt", "negative_prompt"])
def test_syntax_that_could_undo_the_prefix_is_blocked(guard, server, prompt, channel, field):
    """In each text; the error names the channel that a policy may permit, and nothing is drawn."""
    with pytest.raises(PolicyBlocked, match=channel):
        guard(**{"prompt": "a cat", field: prompt})

    assert server.posted("/sdapi/v1/txt2img") == []


def test_weights_below_the_bound_are_not_blocked(guard):
    """What people write every day."""
    for prompt in ("(a man:1.4)", "((a man))", "[a man]", "a man (smiling:0.8), ratio 16:9", "time: 5 (pm)"):
        assert guard.check(prompt).action == "anonymize"


@pytest.mark.parametrize(
    ("fields", "channel"),
    [
        ({"init_images": ["aGk="]}, "image"),
        ({"mask": "aGk="}, "image"),
        ({"init_latent": [1]}, "latents"),
        ({"refiner_checkpoint": "other"}, "extension"),
        ({"hr_checkpoint_name": "other"}, "extension"),
        ({"script_name": "x/y/z plot"}, "extension"),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, "extension"),
        ({"infotext": "Mara Voss\nSteps: 1"}, "extension"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "extension"),
        ({"override_settings": {"textual_inversion_add_hashes_to_infotext": False}}, "extension"),
        ({"override_settings_restore_afterwards": False}, "extension"),
        ({"cfg_scale": 0.5}, "guidance"),
        ({"cfg_scale": -7}, "guidance"),
        ({"cfg_scale": "7"}, "guidance"),
        ({"hr_cfg": 0}, "guidance"),
        ({"surprise": 1}, "surprise"),
        ({"prompt_2": "Mara Voss"}, "prompt_2"),
    ],
    ids=str,
)
def test_fields_that_bring_other_content_are_blocked(guard, server, fields, channel):
    """Known ones by their channel, unknown ones by their name."""
    with pytest.raises(PolicyBlocked, match=channel):
        guard("a cat", **fields)

    assert server.posted("/sdapi/v1/txt2img") + server.posted("/sdapi/v1/img2img") == []


def test_what_a_policy_permits_goes_through_with_the_prefix(server, prefix):
    """An input picture, where a platform allows it: img2img, the prefix still in the prompt."""
    guard = Guard(A1111(server.url), allowing("image", "adapter_weights"), prefix=prefix)

    guard("a man <lora:style:0.5>", init_images=["aGk="], denoising_strength=0.5)

    sent = server.posted("/sdapi/v1/img2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} a man <lora:style:0.5>"
    assert sent["init_images"] == ["aGk="]


def test_styles_are_resolved_before_the_decision(guard, server, prefix):
    """The text of a style is decided about, and stands behind the prefix."""
    server.styles = {"oil": ("an oil painting of {prompt}", "photo"), "bad": ("(x:99)", ""), "tail": ("sharp", "")}

    guard("a man", styles=["oil", "tail"], negative_prompt="blur", hr_prompt="close")

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} an oil painting of a man, sharp"
    assert sent["hr_prompt"] == f"{prefix.embedding_name} an oil painting of close, sharp"
    assert sent["negative_prompt"] == "blur, photo"
    assert not sent.get("styles")
    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard("a man", styles=["bad"])


def test_negative_prompts_stay_as_they_are(guard, server):
    """Guidance steers away from them."""
    guard("a man", negative_prompt="blurry (hands:1.2) BREAK x")

    assert server.posted("/sdapi/v1/txt2img")[0]["negative_prompt"] == "blurry (hands:1.2) BREAK x"


def test_with_the_tokenizer_a_chunk_is_filled(server, prefix):
    """Without it, words count by their letters; either way the prefix begins every chunk."""
    prompt = "a photo of an man, " * 12
    for tokenizer, chunks in ((None, 3), (TOKENIZER, 2)):
        Guard(A1111(server.url, tokenizer=tokenizer), prefix=prefix)(prompt)

        assert len(server.encoded[-1]) == chunks
        assert all_begin_with(server.encoded[-1], prefix)


def test_brackets_longer_than_a_chunk_are_refused(guard, server):
    """They cannot be cut, so their end would stand in a chunk without the prefix."""
    with pytest.raises(PrefixNotApplied, match="65 tokens"):
        guard("(" + "a man " * 20 + ":1.2)")
    assert server.posted("/sdapi/v1/txt2img") == []


class TestTheServerIsAsked:
    """A server that has not got the prefix, or stops having it, draws nothing."""

    def test_without_naming_a_prefix(self, server):
        """The weights cannot be read, so none can be found."""
        with pytest.raises(PrefixNotFound, match="prefix=NAME"):
            Guard(A1111(server.url))

    def test_at_start(self, server, prefix):
        """Missing, or of another size."""
        del server.embeddings[prefix.embedding_name]
        with pytest.raises(PrefixNotApplied, match="prefix export"):
            Guard(A1111(server.url), prefix=prefix)
        server.embeddings[prefix.embedding_name] = (prefix.n, 768)
        with pytest.raises(PrefixNotApplied, match="another size"):
            Guard(A1111(server.url), prefix=prefix)

    def test_another_checkpoint_than_the_one_named(self, server, prefix):
        """By hash or by name."""
        for checkpoint in ("6ce0161689", "v1-5-pruned-emaonly", "v1-5-pruned-emaonly.safetensors"):
            Guard(A1111(server.url, checkpoint=checkpoint), prefix=prefix)
        with pytest.raises(PrefixNotApplied, match="another checkpoint"):
            Guard(A1111(server.url, checkpoint="0123456789"), prefix=prefix)

    def test_removed_while_running(self, guard, server, prefix, tmp_path):
        """Seen before the next picture, and recorded."""
        del server.embeddings[prefix.embedding_name]

        with pytest.raises(PrefixNotApplied):
            guard("a man")
        assert server.posted("/sdapi/v1/txt2img") == []
        assert records(tmp_path / "audit")[-1]["result"] == "failed"

    def test_another_checkpoint_loaded_while_running(self, guard, server):
        """Its text encoder is another."""
        server.model = {"sd_checkpoint_hash": "99" * 32, "sd_model_checkpoint": "other [9999999999]"}

        with pytest.raises(PrefixNotApplied, match="another checkpoint"):
            guard("a man")
        assert server.posted("/sdapi/v1/txt2img") == []

    def test_an_embedding_that_is_new(self, guard, server):
        """Its name may stand in the prompt; the next call knows it."""
        server.embeddings["ada"] = (1, 32)

        with pytest.raises(GuardUnavailable, match="again"):
            guard("ada")
        with pytest.raises(PolicyBlocked, match="textual_inversion"):
            guard("ada")
        assert guard("a man").images

    @pytest.mark.parametrize("fault", ["error", "no JSON", "another shape", "a list", "dropped"])
    def test_a_server_that_does_not_say(self, guard, server, fault):
        """A failing question is no yes."""
        server.routes["GET /sdapi/v1/embeddings"] = raising(FAULTS[fault])

        with pytest.raises(GuardUnavailable):
            guard("a man")
        assert server.posted("/sdapi/v1/txt2img") == []


class TestNoPictureWithoutAReceipt:
    """The record of each picture must name the prefix."""

    def test_a_server_that_does_not_report_it(self, guard, server, tmp_path):
        """Old versions, or an extension that took it out of the prompt."""
        server.writes_hashes = False

        with pytest.raises(PrefixNotApplied, match="does not report"):
            guard("a man")
        assert records(tmp_path / "audit")[-1]["result"] == "failed"

    def test_the_prompt_cannot_forge_it(self, guard, server):
        """The record repeats the prompt, which holds the prefix's name."""
        server.writes_hashes = False

        for forged in ("TI hashes: BREAK", "x\nSteps: 1, TI hashes: BREAK", '", TI hashes: BREAK', "TI: AND"):
            with pytest.raises(PrefixNotApplied):
                guard(forged, enable_hr=True, hr_prompt=forged)

    def test_a_picture_of_another_checkpoint(self, guard, server):
        """Exchanged between question and answer."""
        draw = server.draw

        def swapped(fields):
            answer = draw(fields)
            info = json.loads(answer["info"]) | {"sd_model_hash": "9999999999", "sd_model_name": "other"}
            return answer | {"info": json.dumps(info)}

        server.routes["POST /sdapi/v1/txt2img"] = swapped
        with pytest.raises(PrefixNotApplied, match="another checkpoint"):
            guard("a man")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_server_are_errors_of_the_backend(server, prefix, tmp_path, fault):
    """One request, no picture, an error of its own, and a record."""
    guard = Guard(A1111(server.url, **TIGHT), prefix=prefix, audit=tmp_path / "audit")
    server.routes["POST /sdapi/v1/txt2img"] = raising(FAULTS[fault])

    with pytest.raises(RemoteError) as caught:
        guard("a photo of Mara Voss")

    assert len(server.posted("/sdapi/v1/txt2img")) == 1
    assert "Mara" not in str(caught.value)
    assert records(tmp_path / "audit")[-1]["result"] == "backend_error"


def test_shadow_sends_what_was_asked(server, tmp_path):
    """And needs no prefix."""
    server.routes["GET /sdapi/v1/embeddings"] = lambda _: {"loaded": {}, "skipped": {}}
    Guard(A1111(server.url), "shadow_anonymize_faces", audit=tmp_path / "audit")("a (man:9)", negative_prompt="x")

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert (sent["prompt"], sent["negative_prompt"]) == ("a (man:9)", "x")


def test_wrong_arguments(guard, server):
    """Named, before anything is sent."""
    for wrong in ({"prompt": 7}, {"prompt": ["a", "b"]}, {"styles": "oil"}, {"override_settings": [1]}, {"steps": {1}}):
        with pytest.raises(InvalidInput):
            guard(**{"prompt": "a", **wrong})
    with pytest.raises(TypeError):
        guard("a", "b")
    for hidden in ("send", "http", "steps"):
        with pytest.raises(AttributeError):
            getattr(guard, hidden)
    assert server.posted("/sdapi/v1/txt2img") == []


def test_the_prompt_is_snapshotted():
    """A text that says one thing to the guard and another to the server becomes plain; lists are copied."""

    class Sly(str):
        def __str__(self):
            return "other"

    adapter = A1111Adapter(A1111("http://127.0.0.1:1"))
    adapter._embeddings = {}
    settings_given = {"samples_format": "png"}
    request = adapter.read((Sly("a cat"),), {"override_settings": settings_given})
    settings_given["sd_model_checkpoint"] = "other"

    assert request.text[Channel.PROMPT] == ("a cat",)
    assert type(request.text[Channel.PROMPT][0]) is str
    assert request.arguments["fields"]["override_settings"] == {"samples_format": "png"}


def test_a_style_server_that_fails(guard, server):
    """No picture; the error is the server's."""
    server.routes["GET /sdapi/v1/prompt-styles"] = raising(Status(500))

    with pytest.raises(RemoteError):
        guard("a man", styles=["oil"])
    assert server.posted("/sdapi/v1/txt2img") == []
