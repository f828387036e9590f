"""A run of ComfyUI: it has the prefix, it draws what was sent, and whatever goes wrong is an error."""

import contextlib
import copy
import json

import pytest
from comfyui_server import TOKENIZER, all_begin_with
from services import FAULTS, TIGHT, Cut, Dropped, Status, raising, records
from workflows import MODEL, node, workflow

from apl_guard import ComfyUI, Guard, GuardUnavailable, InvalidInput, PrefixNotApplied
from apl_guard.adapters.remote.http_client import RemoteAnswerInvalid, RemoteError, RemoteRefused, RemoteTimeout
from apl_guard.exchange.embedding import to_embedding
from apl_guard.prefix import Prefix
from apl_guard.request import Channel


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

    @pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
    def test_a_text_encoder_for_which_it_reads_no_embedding(self, server, prefix, kind):
        """It would take the name of the embedding for words, so that the record spoke of vectors that nobody got."""
        traits = {slot: each.model_copy(update={"kind": kind}) for slot, each in prefix.metadata.traits.items()}
        other = Prefix(prefix.vectors, prefix.metadata.model_copy(update={"traits": traits}))
        server.embeddings[other.embedding_name] = (other.n, None)

        with pytest.raises(PrefixNotApplied, match=f"no embedding for a text encoder '{kind}'"):
            Guard(ComfyUI(server.url), prefix=other)

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

    @pytest.mark.parametrize("fault", [Dropped(), Cut(), Status(502, b"<html>")], ids=["dropped", "cut off", "502"])
    @pytest.mark.parametrize("route", ["GET /history/*", "GET /queue"])
    def test_a_connection_that_is_lost_while_waiting_is_made_again(self, guard, server, route, fault):
        """Asking draws nothing. The run that was started goes on, and its pictures are fetched."""
        server.waits, answer, faults = 4, server.routes[route], [fault]
        look = server.routes["GET /history/*"]

        def failing_once(given):
            if faults:
                raise faults.pop()
            return answer(given)

        def losing_the_first(run):
            if not server.asked:
                server.asked = 1
                raise Dropped
            return look(run)

        server.routes["GET /history/*"] = losing_the_first  # so that the queue is asked
        server.routes[route] = failing_once
        assert guard(workflow()).images
        assert (len(server.posted("/prompt")), faults) == (1, [])

    def test_a_server_that_was_started_again_knows_nothing_of_the_run(self, guard, server, tmp_path):
        """Neither in its history nor in its queue: an error at once, not after the ten minutes that a run may take."""
        server.waits, server.restarts_at = 10**6, 2

        with pytest.raises(RemoteError, match="knows the run no more"):
            guard(workflow())
        assert len(server.posted("/prompt")) == 1
        assert records(tmp_path / "audit")[-1]["result"] == "backend_error"

    def test_a_run_that_was_taken_from_the_queue(self, guard, server, monkeypatch):
        """By somebody else, with no connection lost."""
        monkeypatch.setattr("apl_guard.adapters.comfyui.wait._SECONDS_BETWEEN_QUEUES", 0.3)
        server.waits = 10**6
        server.routes["GET /queue"] = lambda _: {"queue_running": [], "queue_pending": []}

        with pytest.raises(RemoteError, match="knows the run no more"):
            guard(workflow())

    def test_a_run_that_ends_between_two_questions(self, guard, server, monkeypatch):
        """In the history after it was looked for there, and out of the queue before it was looked for there."""
        monkeypatch.setattr("apl_guard.adapters.comfyui.wait._SECONDS_BETWEEN_QUEUES", 0)
        assert guard(workflow()).images
        assert [path for _, path, _ in server.seen if path == "/queue"]

    @pytest.mark.parametrize("fault", [Status(404), Status(200, b"[]"), Status(200, b'{"queue_running": 7}')])
    def test_a_proxy_that_hides_the_queue(self, guard, server, monkeypatch, fault):
        """Nobody can say, so the run is waited for."""
        monkeypatch.setattr("apl_guard.adapters.comfyui.wait._SECONDS_BETWEEN_QUEUES", 0)
        server.waits = 2
        server.routes["GET /queue"] = raising(fault)

        assert guard(workflow()).images

    def test_a_server_that_runs_something_else(self, guard, server):
        """The history shows the workflow that was run."""

        def without_prefix(graph):
            graph["3"]["inputs"]["text"] = graph["3"]["inputs"]["text"].partition(" ")[2]
            return graph

        server.swap = without_prefix
        with pytest.raises(RemoteAnswerInvalid, match="another workflow"):
            guard(workflow())

    def test_a_server_that_runs_the_same_texts_otherwise(self, guard, server):
        """With the negative prompt, which has no prefix, in place of the prompt."""

        def turned_round(graph):
            sampler = graph["5"]["inputs"]
            sampler["positive"], sampler["negative"] = sampler["negative"], sampler["positive"]
            return graph

        server.swap = turned_round
        with pytest.raises(RemoteAnswerInvalid, match="another workflow"):
            guard(workflow())

    @pytest.mark.parametrize("run", ["", "../x", "a" * 101, "\ud800", 7, None])
    def test_an_odd_name_of_a_run(self, guard, server, run):
        """It becomes a part of an address, and of errors."""
        server.routes["POST /prompt"] = lambda _: {"prompt_id": run}
        with pytest.raises(RemoteAnswerInvalid, match="prompt_id"):
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


@pytest.mark.parametrize(
    "wrong",
    [{"\x1b[2J" * 99: 7}, {"\x1b[2J" * 99: {"class_type": "X", "inputs": []}},
     {"1": node("X", **{"\n" * 99: ["9", 0]})},
     {"\n": node("VAEDecode", samples=["\n", 0])}, {"\n": node("CLIPTextEncode", text=7)}],
    ids=ascii,
)  # fmt: skip
def test_names_of_nodes_and_inputs_are_shown_in_part(guard, wrong):
    """Whoever makes a workflow chooses them, and an error is read on a terminal."""
    with pytest.raises(InvalidInput) as caught:
        guard(wrong)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_the_workflow_is_snapshotted(guard, server, prefix):
    """What the caller does to it afterwards, or during the call, changes nothing."""
    asked = workflow()
    before = copy.deepcopy(asked)
    adapter = guard._parts.backend
    request = adapter.read((asked,), {})
    asked["3"]["inputs"]["text"] = "other"

    assert request.text[Channel.PROMPT] == ("a man",)
    adapter.generate(request, prefix)
    assert json.dumps(server.posted("/prompt")[0]["prompt"]).count("other") == 0
    asked["3"]["inputs"]["text"] = "a man"
    assert asked == before


def test_a_rewritten_text_runs(guard, server):
    """What a policy puts in place of a prompt is what the server gets."""
    request = guard._parts.backend.read((workflow("Mara", "x"),), {}).saying({Channel.PROMPT: ("a woman",)})
    guard._parts.backend.generate(request, None)

    sent = server.posted("/prompt")[0]["prompt"]
    assert (sent["3"]["inputs"]["text"], sent["4"]["inputs"]["text"]) == ("a woman", "x")


def test_pictures_that_are_too_large_together_are_refused(server, monkeypatch):
    """However many a server sends, and however small they are packed."""
    monkeypatch.setattr("apl_guard.adapters.remote.images._MAX_PIXELS_TOGETHER", 1)
    with pytest.raises(RemoteAnswerInvalid, match="together"):
        ComfyUI(server.url)(workflow())
