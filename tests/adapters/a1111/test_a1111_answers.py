"""What AUTOMATIC1111 says: that it has the prefix, before each call, and that it used it, for each picture."""

import json

import pytest
from services import FAULTS, TIGHT, raising, records

from apl_guard import (
    A1111,
    Guard,
    GuardUnavailable,
    Policy,
    PolicyBlocked,
    PrefixNotApplied,
    PrefixNotFound,
)
from apl_guard.adapters.remote.http_client import RemoteAnswerInvalid, RemoteError


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

    @pytest.mark.parametrize("checkpoint", [None, "sd/v1-5-pruned-emaonly.safetensors", "v1-5-pruned-emaonly"])
    def test_a_checkpoint_in_a_folder(self, server, prefix, checkpoint):
        """The server tells the folder in its options, not in what it says about a picture. Here it has no hashes."""
        server.model = {"sd_checkpoint_hash": "", "sd_model_checkpoint": "sd/v1-5-pruned-emaonly.safetensors"}
        guard = Guard(A1111(server.url, checkpoint=checkpoint), prefix=prefix)

        assert guard("a man").images
        server.model["sd_model_checkpoint"] = "other/v1-5-pruned-emaonly.safetensors"
        if checkpoint != "v1-5-pruned-emaonly":
            with pytest.raises(PrefixNotApplied, match="another checkpoint"):
                guard("a man")

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

    def test_an_embedding_that_is_new_where_calls_have_no_prefix(self, server, prefix):
        """They ask for it, too, or its name would be taken for a word for ever."""
        rules = [{"id": "all", "when": {"channels": ["prompt"]}, "then": {"action": "unsafe_allow"}}]
        about = {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "open", "version": 1}}
        guard = Guard(A1111(server.url), Policy(**about, spec={"rules": rules}), prefix=prefix)
        server.embeddings["ada"] = (1, 32)

        assert guard("a man").images
        assert server.posted("/sdapi/v1/txt2img")[0]["prompt"] == "a man"
        with pytest.raises(PolicyBlocked, match="textual_inversion"):
            guard("ada")
        server.embeddings["eve"] = (1, 32)
        with pytest.raises(GuardUnavailable, match="again"):
            guard("eve")

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

    @pytest.mark.parametrize("records", [None, "x", [], [None], [7], [["Steps: 1"]], ["x\n" + "a" * 300_000]])
    def test_records_that_are_none(self, guard, server, records):
        """Also one that a careless reader would take hours for."""
        draw = server.draw

        def odd(fields):
            answer = draw(fields)
            return answer | {"info": json.dumps(json.loads(answer["info"]) | {"infotexts": records})}

        server.routes["POST /sdapi/v1/txt2img"] = odd
        with pytest.raises(PrefixNotApplied):
            guard("a man")

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_picture_without_a_record(self, guard, server, tmp_path, count):
        """One more picture than records: nobody knows what it was drawn from."""
        draw = server.draw

        def one_more(fields):
            answer = draw(fields)
            return answer | {"images": [*answer["images"], answer["images"][0]]}

        server.routes["POST /sdapi/v1/txt2img"] = one_more
        with pytest.raises(PrefixNotApplied, match=f"{count + 1} images and records of {count}"):
            guard("a man", batch_size=count)
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


def test_pictures_that_are_too_large_together_are_refused(server, monkeypatch):
    """However many a server sends, and however small they are packed."""
    monkeypatch.setattr("apl_guard.adapters.remote.images._MAX_PIXELS_TOGETHER", 1)
    with pytest.raises(RemoteAnswerInvalid, match="together"):
        A1111(server.url)("a cat", batch_size=2)


def test_what_a_call_gives_can_be_logged(guard):
    """The server says the prompt again in its parameters and its info; they are there, and not shown."""
    made = guard.generate("a photo of Mara Voss")

    assert "Mara Voss" in made.output.parameters["prompt"]
    assert "Mara" not in repr(made)
