"""In front of ComfyUI: the prefix begins every chunk of every prompt of a workflow, or the workflow is refused."""

import copy

import pytest
from comfyui_server import ComfyUIServer, all_begin_with
from hypothesis import given
from hypothesis import strategies as st
from workflows import MODEL, node, workflow

from apl_guard import ComfyUI, Guard, InvalidInput, PolicyBlocked, PrefixNotApplied
from apl_guard.adapters.comfyui.graph import read_graph, with_prefix
from apl_guard.adapters.comfyui.links import consumers_in, roles_of
from apl_guard.adapters.prompts.token_bounds import byte_bound
from apl_guard.request import Channel


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
    """SDXL, SD3, Flux and HunyuanDiT: each text of a node; T5 takes its text whole, BERT no more than its window."""
    long = "a man, " * 30
    for kind, fields in {
        "CLIPTextEncodeSDXL": {"text_g": long, "text_l": "a man", "width": 64},
        "CLIPTextEncodeSD3": {"clip_l": long, "clip_g": "a", "t5xxl": long, "empty_padding": "none"},
        "CLIPTextEncodeFlux": {"clip_l": "a", "t5xxl": long, "guidance": 3.5},
        "CLIPTextEncodeHunyuanDiT": {"bert": long * 10, "mt5xl": long},
    }.items():
        guard(workflow() | {"3": node(kind, clip=["1", 1], **fields)})

        sent = server.posted("/prompt")[-1]["prompt"]
        copies = [n["inputs"] for n in sent.values() if n["class_type"] == kind]
        texts = {f: [c[f] for c in copies] for f in fields if f not in ("width", "empty_padding", "guidance")}
        for field, found in texts.items():
            assert all(text.startswith(f"embedding:{prefix.embedding_name}") for text in found)
            if field in ("t5xxl", "mt5xl"):
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

    @pytest.mark.parametrize("hidden", [{"__value__": ["4", 0]}, {"value": ["4", 0]}, {"__value__": {"a": ["4", 0]}}])
    def test_a_link_that_is_not_to_be_seen(self, guard, server, hidden):
        """A server unwraps such values, and the negative prompt would be drawn by a second sampler."""
        asked = workflow(negative="Mara Voss")
        links = {"model": ["1", 0], "positive": hidden, "negative": ["3", 0], "latent_image": ["2", 0]}
        asked["20"] = node("KSampler", cfg=7, **links)

        with pytest.raises(InvalidInput, match="link within a value"):
            guard(asked)
        assert server.posted("/prompt") == []

    def test_many_ways_to_one_sampler(self):
        """A text reaches it on 2 ** 200 ways, or through 5,000 nodes: it is read all the same."""
        for length, inputs in ((200, ("conditioning_1", "conditioning_2")), (5000, ("conditioning_1",))):
            asked = workflow()
            for number in range(length):
                last = ["3" if number == 0 else f"c{number - 1}", 0]
                asked[f"c{number}"] = node("ConditioningCombine", **dict.fromkeys(inputs, last))
            asked["5"]["inputs"]["positive"] = [f"c{length - 1}", 0]

            graph = read_graph(asked, frozenset({MODEL}), frozenset())

            assert [place.node for place in graph.prompts] == ["3"]

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
        ({"3": node("CLIPTextEncode", text=r"(Mara\\):9)")}, "prompt_syntax"),
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


@pytest.mark.parametrize("output", [-1, 0.0, True])
def test_an_output_has_one_name(guard, server, output):
    """The server counts −1 from the end: a text could be drawn through a link that the guard does not follow."""
    asked = workflow("a man", "Mara Voss")
    asked["8"] = copy.deepcopy(asked["5"])
    asked["8"]["inputs"]["positive"] = ["4", output]

    with pytest.raises(InvalidInput, match="from 0"):
        guard(asked)
    assert server.posted("/prompt") == []


@pytest.mark.parametrize(("layer", "is_blocked"), [(-1, False), (-2, False), (-3, True), (-24, True), (["1", 0], True)])
def test_an_early_layer_of_the_text_encoder_is_blocked(guard, layer, is_blocked):
    """The prefix has had little time to act there, and none at all below the first."""
    cut = node("CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=layer)

    decision = guard.check(workflow("a man", **{"9": cut}))

    assert ("attention" in [reason.channel for reason in decision.reasons]) == is_blocked


def test_a_platform_can_name_harmless_classes(server, prefix):
    """For its own nodes that carry neither text nor pictures, with lists in their fields as the editor wraps them."""
    guard = Guard(ComfyUI(server.url, models=[MODEL], harmless=["MyResizer"]), prefix=prefix)

    for value in (4, {"__value__": [0.5, 0.3]}, {"__value__": ["red", "blue"]}, {"on": True, "sizes": [64, 32]}):
        assert guard(workflow() | {"20": node("MyResizer", images=["6", 0], value=value)}).images


def test_every_class_stands_in_one_table():
    """A class in two tables would be treated in two ways."""
    from apl_guard.adapters.comfyui import graph as g
    from apl_guard.adapters.comfyui.links import ENDS

    tables = [g._TEXTS.keys(), g._STRINGS.keys(), g._CHANNELS.keys(), g._MODELS.keys(), ENDS, g._HARMLESS]
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("first", ["positive", "negative"])
def test_a_node_with_two_outputs_keeps_what_each_text_is_used_as(first):
    """A ControlNet takes and gives the conditioning of both prompts, and a node may name its inputs in any order."""
    second = {"positive": "negative", "negative": "positive"}[first]
    inputs = {"positive": ("20", 0), "negative": ("20", 1)}
    nodes = {
        "20": {"class_type": "ControlNetApplyAdvanced", "inputs": {first: [first, 0], second: [second, 0]}},
        "5": {"class_type": "KSampler", "inputs": {first: list(inputs[first]), second: list(inputs[second])}},
    }

    consumers = consumers_in(nodes)
    assert [roles_of(consumers, text) for text in ("positive", "negative")] == [{"positive"}, {"negative"}]
