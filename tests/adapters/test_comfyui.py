"""The guard in front of ComfyUI: the prefix begins every chunk of every prompt of a workflow, or nothing runs."""

import contextlib
import copy
import json

import pytest
from comfyui_server import TOKENIZER, ComfyUIServer
from hypothesis import given
from hypothesis import strategies as st
from services import FAULTS, TIGHT, Status, raising, records

from apl_guard import ComfyUI, Guard, GuardUnavailable, InvalidInput, PolicyBlocked, PrefixNotApplied
from apl_guard.adapters.comfyui import text_to_image
from apl_guard.adapters.comfyui_graph import read_graph, with_prefix
from apl_guard.adapters.http_client import RemoteAnswerInvalid, RemoteError, RemoteRefused, RemoteTimeout
from apl_guard.adapters.prompt_syntax import byte_bound
from apl_guard.exchange.embedding import to_embedding
from apl_guard.request import Channel

MODEL = "sd15.safetensors"


@pytest.fixture
def server(prefix):
    server = ComfyUIServer({prefix.embedding_name: (prefix.n, None), "mara": (4, None)})
    yield server
    server.close()


@pytest.fixture
def guard(server, prefix, tmp_path):
    return Guard(ComfyUI(server.url, models=[MODEL]), prefix=prefix, audit=tmp_path / "audit")


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def workflow(prompt="a man", negative="blur", **more):
    return text_to_image(MODEL, prompt, negative, seed=1, steps=1) | more


def all_begin_with(encoded, prefix):
    begin = [(prefix.embedding_name, 1.0)] * prefix.n
    return bool(encoded) and all(chunk[: prefix.n] == begin for chunks in encoded.values() for chunk in chunks)


def test_the_prefix_is_in_the_prompt_and_the_answer_is_the_clients(guard, server, prefix, tmp_path):
    """Same type, picture of the workflow with the prefix, negative prompt as it was; both records are written."""
    asked = workflow()
    made = guard.generate(asked)

    sent = server.posted("/prompt")[0]["prompt"]
    assert sent["3"]["inputs"]["text"] == f"embedding:{prefix.embedding_name} a man"
    assert sent["4"]["inputs"]["text"] == "blur"
    assert {k: v for k, v in sent.items() if k != "3"} == {k: v for k, v in asked.items() if k != "3"}
    bare = ComfyUI(server.url)(workflow(f"embedding:{prefix.embedding_name} a man"))
    assert type(made.output) is type(bare)
    assert made.output.images[0].tobytes() == bare.images[0].tobytes()
    assert made.output.outputs["7"] == made.output.images
    assert made.output.images[0].tobytes() != ComfyUI(server.url)(workflow()).images[0].tobytes()
    decision, outcome = records(tmp_path / "audit")
    assert (decision["action"], outcome["result"], outcome["images"]) == ("anonymize", "passed", 1)
    assert outcome["prefix_digest"] == prefix.digest


@pytest.mark.parametrize(
    "prompt", ["", "a man", "a man, " * 60, "(a man:1.2) " * 30, r"a \(man\)", "日本語の" * 40, "x" * 200]
)
def test_every_chunk_begins_with_the_prefix(guard, server, prefix, prompt):
    """Long prompts become several nodes, joined; nothing of the text is lost."""
    guard(workflow(prompt))

    encoded = server.encoded()
    assert all_begin_with(encoded, prefix)
    sent = server.posted("/prompt")[0]["prompt"]
    texts = [n["inputs"]["text"] for k, n in sent.items() if n["class_type"] == "CLIPTextEncode" and k != "4"]
    joined = "".join(texts).replace(f"embedding:{prefix.embedding_name}", "")
    assert "".join(joined.split()) == "".join(prompt.split())


WORDS = st.sampled_from(
    ["a", "Mara", "(", ")", ":1.5)", ":9)", "\\", "embedding:", "embedding:mara", "\n", "é", "x" * 70]
)


@given(st.lists(WORDS, max_size=50), st.sampled_from(["", " "]), st.sampled_from(["", " "]))
def test_no_prompt_gets_a_chunk_without_the_prefix(prefix, words, between, other):
    """Whatever is typed is blocked, or cannot be cut, or begins every chunk with the prefix."""
    asked = workflow(between.join(words[:25]) + other.join(words[25:]))
    graph = read_graph(asked, frozenset({MODEL}), frozenset())
    if graph.channels - {Channel.PROMPT, Channel.NEGATIVE_PROMPT}:
        return
    try:
        sent = with_prefix(graph, prefix.embedding_name, prefix.n, byte_bound)
    except PrefixNotApplied:
        return

    chunks = ComfyUIServer.chunks
    reader = type("Reader", (), {"embeddings": {prefix.embedding_name: (prefix.n, None), "mara": (4, None)}})()
    texts = [n["inputs"]["text"] for k, n in sent.items() if n["class_type"] == "CLIPTextEncode" and k != "4"]
    assert all_begin_with({number: chunks(reader, text) for number, text in enumerate(texts)}, prefix), texts


def test_families_with_several_texts(guard, server, prefix):
    """SDXL, SD3, Flux and HunyuanDiT: each text of a node; T5 takes its text whole."""
    long = "a man, " * 30
    for kind, fields in {
        "CLIPTextEncodeSDXL": {"text_g": long, "text_l": "a man", "width": 64},
        "CLIPTextEncodeSD3": {"clip_l": long, "clip_g": "a", "t5xxl": long, "empty_padding": "none"},
        "CLIPTextEncodeFlux": {"clip_l": "a", "t5xxl": long, "guidance": 3.5},
        "CLIPTextEncodeHunyuanDiT": {"bert": "a", "mt5xl": long},
    }.items():
        guard(workflow() | {"3": node(kind, clip=["1", 1], **fields)})

        sent = server.posted("/prompt")[-1]["prompt"]
        copies = [n["inputs"] for n in sent.values() if n["class_type"] == kind]
        texts = {f: [c[f] for c in copies] for f in fields if f not in ("width", "empty_padding", "guidance")}
        for field, found in texts.items():
            assert all(text.startswith(f"embedding:{prefix.embedding_name}") for text in found)
            if field in ("t5xxl", "mt5xl", "bert"):
                assert found[0] == f"embedding:{prefix.embedding_name} {fields[field]}".strip()
            else:
                assert all(
                    c[: prefix.n] == [(prefix.embedding_name, 1.0)] * prefix.n for t in found for c in server.chunks(t)
                )


class TestRoles:
    """Whether a text is a prompt follows from where its conditioning goes."""

    def test_combined_and_second_samplers(self, guard, server, prefix):
        """A second pass, a region, an average: every text that steers towards."""
        guard(
            workflow()
            | {
                "20": node("CLIPTextEncode", text="a dog", clip=["1", 1]),
                "21": node("ConditioningSetArea", conditioning=["20", 0], width=64, height=64, x=0, y=0, strength=1.0),
                "22": node("ConditioningCombine", conditioning_1=["3", 0], conditioning_2=["21", 0]),
                "23": node(
                    "KSampler", model=["1", 0], positive=["22", 0], negative=["4", 0], latent_image=["5", 0], cfg=7
                ),
                "24": node("CLIPTextEncode", text="unused", clip=["1", 1]),
            }
        )

        sent = server.posted("/prompt")[0]["prompt"]
        begins = {k for k, n in sent.items() if str(n["inputs"].get("text", "")).startswith("embedding:")}
        assert begins == {"3", "20", "24"}
        assert all_begin_with(server.encoded(), prefix)

    def test_exchanged(self, guard, server, prefix):
        """What is wired as positive is the prompt, whatever its place in the file."""
        asked = workflow("blur", "Mara")
        asked["5"]["inputs"] |= {"positive": ["4", 0], "negative": ["3", 0]}
        guard(asked)

        sent = server.posted("/prompt")[0]["prompt"]
        assert sent["4"]["inputs"]["text"] == f"embedding:{prefix.embedding_name} Mara"
        assert sent["3"]["inputs"]["text"] == "blur"

    def test_one_text_for_both(self, guard, server):
        """The prefix on both sides would cancel out."""
        asked = workflow()
        asked["20"] = node(
            "KSampler", model=["1", 0], positive=["4", 0], negative=["4", 0], latent_image=["2", 0], cfg=7
        )
        with pytest.raises(PolicyBlocked, match="prompt_syntax"):
            guard(asked)

    def test_zeroed(self, guard, server, prefix):
        """The common negative of models without one: the prompt with everything set to zero."""
        asked = workflow()
        asked["4"] = node("ConditioningZeroOut", conditioning=["3", 0])
        guard(asked)

        assert all_begin_with(server.encoded(), prefix)

    def test_text_in_a_node_of_its_own(self, guard, server, prefix):
        """Strings are followed to where they stand; other sources of text are unknown."""
        asked = workflow(["20", 0]) | {"20": node("PrimitiveStringMultiline", value="Mara")}
        guard(asked)
        assert server.posted("/prompt")[0]["prompt"]["3"]["inputs"]["text"] == f"embedding:{prefix.embedding_name} Mara"

        with pytest.raises(PolicyBlocked, match="WildcardEncode"):
            guard(workflow(["20", 0]) | {"20": node("WildcardEncode", text="__names__")})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"20": node("LoadImage", image="a.png")}, "image"),
        ({"20": node("VAEEncode", pixels=["6", 0])}, "image"),
        ({"20": node("ControlNetLoader", control_net_name="x")}, "image"),
        ({"20": node("LoraLoader", lora_name="mara")}, "adapter_weights"),
        ({"20": node("LoadLatent", latent="x")}, "latents"),
        ({"20": node("CLIPVisionEncode", image=["6", 0])}, "ip_adapter"),
        ({"20": node("IPAdapterApply", image=["6", 0])}, "IPAdapterApply"),
        ({"20": node("CLIPTextEncodeMine", prompt="Mara")}, "CLIPTextEncodeMine"),
        ({"1": node("CheckpointLoaderSimple", ckpt_name="other.safetensors")}, "other.safetensors"),
        ({"20": node("DualCLIPLoader", clip_name1=MODEL, clip_name2="other")}, "other"),
        ({"20": node("UNETLoader", unet_name=["6", 0])}, "unet_name"),
        ({"3": node("CLIPTextEncode", text="(Mara:5)")}, "prompt_syntax"),
        ({"3": node("CLIPTextEncode", text="(Mara:nan)")}, "prompt_syntax"),
        ({"3": node("CLIPTextEncode", text="(Mara:1e9)")}, "prompt_syntax"),
        ({"4": node("CLIPTextEncode", text="embedding:apl-0123456789abcdef")}, "prompt_syntax"),
        ({"3": node("CLIPTextEncode", text="a\nEMBEDDING:mara")}, "textual_inversion"),
        ({"20": node("CFGGuider", cfg=0.5)}, "guidance"),
        ({"20": node("KSampler", cfg=["6", 0])}, "guidance"),
    ],
    ids=str,
)
def test_what_brings_other_content_is_blocked(guard, server, change, named):
    """By its channel, or by the name of the class or the file; nothing runs."""
    with pytest.raises(PolicyBlocked, match=named):
        guard(workflow() | change)

    assert server.posted("/prompt") == []


def test_a_platform_can_name_harmless_classes(server, prefix):
    """For its own nodes that carry neither text nor pictures."""
    guard = Guard(ComfyUI(server.url, models=[MODEL], harmless=["MyResizer"]), prefix=prefix)

    assert guard(workflow() | {"20": node("MyResizer", images=["6", 0])}).images


def test_every_class_stands_in_one_table():
    """A class in two tables would be treated in two ways."""
    from apl_guard.adapters import comfyui_graph as g

    tables = [g._TEXTS.keys(), g._STRINGS.keys(), g._CHANNELS.keys(), g._MODELS.keys(), g._ENDS, g._HARMLESS]
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_with_the_tokenizer_a_chunk_is_filled(server, prefix):
    """Fewer nodes for the same text."""
    for tokenizer, nodes in ((None, 3), (TOKENIZER, 2)):
        Guard(ComfyUI(server.url, models=[MODEL], tokenizer=tokenizer), prefix=prefix)(
            workflow("a photo of an man, " * 12)
        )

        assert len(server.encoded()) == nodes
        assert all_begin_with(server.encoded(), prefix)


class TestTheServerIsAsked:
    """ComfyUI leaves out an embedding that it has not got, so it is asked before each run."""

    def test_missing_at_start(self, server, prefix):
        """With the name of the file and the command that writes it."""
        del server.embeddings[prefix.embedding_name]
        with pytest.raises(PrefixNotApplied, match="prefix export"):
            Guard(ComfyUI(server.url), prefix=prefix)

    def test_of_another_prefix(self, server, prefix):
        """A file of this name whose header says another digest."""
        server.embeddings[prefix.embedding_name] = (10, {"apl_guard_digest": prefix.digest})
        Guard(ComfyUI(server.url), prefix=prefix)
        server.embeddings[prefix.embedding_name] = (10, {"apl_guard_digest": "ab" * 32})
        with pytest.raises(PrefixNotApplied, match="another prefix"):
            Guard(ComfyUI(server.url), prefix=prefix)

    def test_the_export_is_what_is_looked_for(self, server, prefix):
        """Its header, as the server shows it, says the digest; that of another prefix does not."""
        for exported, fits in ((prefix, True), (prefix.first(4), False)):
            content = to_embedding(exported)
            size = int.from_bytes(content[:8], "little")
            server.embeddings[prefix.embedding_name] = (10, json.loads(content[8 : 8 + size])["__metadata__"])
            with contextlib.nullcontext() if fits else pytest.raises(PrefixNotApplied, match="another prefix"):
                Guard(ComfyUI(server.url), prefix=prefix)

    def test_removed_while_running(self, guard, server, prefix, tmp_path):
        """Seen before the next run, and recorded."""
        del server.embeddings[prefix.embedding_name]

        with pytest.raises(PrefixNotApplied):
            guard(workflow())
        assert server.posted("/prompt") == []
        assert records(tmp_path / "audit")[-1]["result"] == "failed"

    @pytest.mark.parametrize("fault", ["error", "no JSON", "another shape", "dropped"])
    def test_a_server_that_does_not_say(self, guard, server, fault):
        """A failing question is no yes."""
        server.routes["GET /embeddings"] = raising(FAULTS[fault])

        with pytest.raises((GuardUnavailable, PrefixNotApplied)):
            guard(workflow())
        assert server.posted("/prompt") == []


class TestFaults:
    """No picture, an error of the backend, a record, and no second run."""

    @pytest.mark.parametrize(
        ("route", "fault"),
        [
            *(("POST /prompt", fault) for fault in FAULTS),
            *(
                ("GET /history/*", fault)
                for fault in ("error", "redirect", "another shape", "a list", "cut off", "silent")
            ),
            *(("GET /view", fault) for fault in ("error", "redirect", "no JSON", "cut off", "slow body")),
        ],
    )
    def test_of_any_answer(self, server, prefix, tmp_path, fault, route):
        """While queueing, waiting and fetching."""
        guard = Guard(ComfyUI(server.url, models=[MODEL], **TIGHT), prefix=prefix, audit=tmp_path / "audit")
        server.waits = 0
        server.routes[route] = raising(FAULTS[fault])

        with pytest.raises(RemoteError):
            guard(workflow())
        assert len(server.posted("/prompt")) == 1
        assert records(tmp_path / "audit")[-1]["result"] == "backend_error"

    def test_a_run_that_fails(self, guard, server):
        """The server says so; its messages are kept apart."""
        queue = server.queue

        def failing(body):
            answer = queue(body)
            server.history[answer["prompt_id"]]["status"] = {
                "status_str": "error",
                "messages": [["execution_error", {}]],
            }
            return answer

        server.routes["POST /prompt"] = failing
        with pytest.raises(RemoteRefused) as caught:
            guard(workflow())
        assert caught.value.detail == [["execution_error", {}]]

    def test_a_workflow_that_the_server_refuses(self, guard, server):
        """With what it says about the nodes."""
        server.routes["POST /prompt"] = raising(Status(400, b'{"node_errors": {"5": {}}}'))

        with pytest.raises(RemoteRefused) as caught:
            guard(workflow())
        assert caught.value.detail == {"node_errors": {"5": {}}}

    def test_a_run_that_never_ends(self, server, prefix):
        """Within the limit, and no second one is started."""
        server.waits = 10**6
        guard = Guard(ComfyUI(server.url, models=[MODEL], time_limit=0.6), prefix=prefix)

        with pytest.raises(RemoteTimeout, match="may still draw"):
            guard(workflow())
        assert len(server.posted("/prompt")) == 1

    def test_a_server_that_runs_something_else(self, guard, server):
        """The history shows the workflow that was run."""

        def without_prefix(graph):
            graph["3"]["inputs"]["text"] = graph["3"]["inputs"]["text"].partition(" ")[2]
            return graph

        server.swap = without_prefix
        with pytest.raises(RemoteAnswerInvalid, match="another workflow"):
            guard(workflow())


@pytest.mark.parametrize(
    "wrong",
    [None, {}, [], "a", {"nodes": [], "links": []}, {"1": 7}, {"1": {"inputs": {}}},
     {"1": node("CLIPTextEncode", text=7)},
     {"1": node("CLIPTextEncode", text=["9", 0])}, {"1": {"class_type": "X", "inputs": []}}, {"1": node("X", y={1})},
     {"1": node("ConditioningSetArea", conditioning=["2", 0]), "2": node("ConditioningSetArea", conditioning=["1", 0]),
      "3": node("CLIPTextEncode", text="a"), "4": node("ConditioningCombine", a=["3", 0], b=["4", 0])}],
    ids=str,
)  # fmt: skip
def test_what_is_no_workflow(guard, server, wrong):
    """Named, before anything is sent."""
    with pytest.raises((InvalidInput, TypeError)):
        guard(wrong)
    assert server.posted("/prompt") == []


def test_the_workflow_is_snapshotted(guard, server, prefix):
    """What the caller does to it afterwards, or during the call, changes nothing."""
    asked = workflow()
    before = copy.deepcopy(asked)
    adapter = guard._backend
    request = adapter.read((asked,), {})
    asked["3"]["inputs"]["text"] = "other"

    assert request.text[Channel.PROMPT] == ("a man",)
    adapter.generate(request, prefix)
    assert json.dumps(server.posted("/prompt")[0]["prompt"]).count("other") == 0
    asked["3"]["inputs"]["text"] = "a man"
    assert asked == before


def test_a_rewritten_text_runs(guard, server):
    """What a policy puts in place of a prompt is what the server gets."""
    request = guard._backend.read((workflow("Mara", "x"),), {}).saying({Channel.PROMPT: ("a woman",)})
    guard._backend.generate(request, None)

    sent = server.posted("/prompt")[0]["prompt"]
    assert (sent["3"]["inputs"]["text"], sent["4"]["inputs"]["text"]) == ("a woman", "x")
