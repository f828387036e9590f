"""A policy tried on the calls of a log: held against deciding about the same calls with their texts at hand."""

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_documents import policy

from apl_guard import Action, InvalidInput
from apl_guard.audit import AuditLog
from apl_guard.audit.reading import read_log
from apl_guard.in_force import PolicyInForce
from apl_guard.in_force.replay import replay
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context
from apl_guard.trainer import minifaces

STARS = {"id": "stars", "people": [{"name": "Mara Voss"}]}


def rule(id, action, channels=("prompt",), **when):
    return {"id": id, "when": {"channels": channels, **when}, "then": {"action": action}}


ALLOW = rule("allow", "allow", ["prompt", "negative_prompt"])
OLD = policy(ALLOW, rule("stars", "anonymize", names=["stars"]), names=[STARS])
PROMPTS = ["a cat", "Mara Voss", "MARA  voss and a cat", "a dog" * 30, "\ud800"]


def calls():
    """Calls of every kind: texts, channels, tenants, routes, backends."""
    for number in range(60):
        text = {Channel.PROMPT: tuple(PROMPTS[(number + i) % 5] for i in range(1 + number % 2))}
        if number % 3 == 0:
            text[Channel.NEGATIVE_PROMPT] = (PROMPTS[number % 2],)
        used = {*text, *([Channel.LATENTS] if number % 4 == 0 else [])}
        unknown = ("surprise",) if number % 7 == 0 else ()
        backend = f"test:{'AB'[number % 2]}"
        asked = GenerationRequest(backend, text, frozenset(used), unknown, carries_prefix=number % 5 > 0)
        yield asked, Context([None, "lab", "acme"][number % 3], [None, "edit"][number % 2])


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of the calls under the old policy, and the calls by their ids."""
    folder = tmp_path_factory.mktemp("log")
    in_force, audit, made = PolicyInForce(OLD), AuditLog(folder), {}
    for asked, context in calls():
        audit.decision(in_force.decide(asked, context), asked)
        made[asked.id] = (asked, context)
    audit.close()
    return folder, made


POLICIES = {
    "the same": OLD,
    "another action": policy(ALLOW, rule("stars", "block", names=["stars"]), names=[STARS]),
    "another list": policy(
        ALLOW, rule("stars", "block", names=["stars"]), names=[STARS | {"people": [{"name": "A Cat"}]}]
    ),
    "a pattern": policy(ALLOW, rule("p", "block", patterns=["p"]), patterns=[{"id": "p", "regex": "dog"}]),
    "always": policy(rule("always", "anonymize"), rule("n", "allow", ["negative_prompt"])),
    "rewritten": policy(rule("always", "anonymize"), ALLOW, names=[STARS], without_prefix="rewrite"),
    "tenants": policy(
        ALLOW, rule("x", "block", tenants=["a*"]), rule("l", "unsafe_allow", ["latents"], routes=["edit"])
    ),
    "models": policy(ALLOW, rule("x", "block", models=["*:A"])),
    "share": policy(ALLOW, rule("x", "block", share={"percent": 40})),
    "share by prompt": policy(ALLOW, rule("x", "block", share={"percent": 40, "key": "prompt"})),
    "limits": policy(ALLOW, rule("x", "block", tenants=["none"]), limits={"characters": 100, "texts": 1}),
    "off": policy(ALLOW, rule("x", "block"), mode="unsafe_off"),
    "two sources": policy(
        *(ALLOW, rule("s", "rewrite", names=["stars"]), rule("p", "block", patterns=["p"])),
        names=[STARS],
        patterns=[{"id": "p", "regex": "dog"}],
    ),
    "nothing unless found": policy(
        *(rule("s", "rewrite", names=["stars"]), rule("p", "block", patterns=["p"])),
        rule("n", "allow", ["negative_prompt"]),
        names=[STARS],
        patterns=[{"id": "p", "regex": "dog"}],
    ),
    "three, two of them alike": policy(
        *(ALLOW, rule("s", "anonymize", names=["stars"]), rule("c", "anonymize", patterns=["c"])),
        rule("p", "block", patterns=["p"]),
        names=[STARS],
        patterns=[{"id": "p", "regex": "dog"}, {"id": "c", "regex": "cat"}],
        without_prefix="rewrite",
    ),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("was", [None, OLD])
def test_a_replay_says_what_the_policy_says_with_the_texts_at_hand(log, name, was):
    """Where it says one action, it is that one; where it says several, it is among them."""
    folder, made = log
    in_force = PolicyInForce(POLICIES[name])

    replayed = list(replay(in_force.policy, (found.fields for found in read_log(folder)), was))

    assert [call.decision_id for call in replayed] == list(made)
    for call in replayed:
        asked, context = made[call.decision_id]
        assert in_force.decide(asked, context).action in call.after
        assert call.before == PolicyInForce(OLD).decide(asked, context).action
    undecided = {call.decision_id for call in replayed if call.change == "undecided"}
    if was is not None and name in ("the same", "another action", "always", "rewritten"):
        assert not undecided
    if was is None and name == "the same":
        assert undecided
    if name in ("always", "tenants", "models", "share", "limits", "off"):
        assert not undecided


def test_the_same_policy_changes_nothing(log):
    """And an always-on prefix makes every call stricter that passed."""
    folder, _ = log
    records = [found.fields for found in read_log(folder)]

    assert {call.change for call in replay(OLD, records, OLD)} == {"same"}
    assert {call.change for call in replay(POLICIES["always"], records)} == {"same", "stricter"}
    assert {call.change for call in replay(POLICIES["off"], records)} == {"same", "more lenient"}


@pytest.mark.parametrize(
    ("changed", "change"),
    [({}, "same"), ({"consenting": "Mara Westgate"}, "undecided"), ({"neutral": "a woman"}, "undecided")],
)
def test_what_the_detector_of_persons_saw_counts_while_it_is_asked_the_same(tmp_path, changed, change):
    """Another list of people who consent asks it something else: it takes back what was seen."""

    def asking(consenting="Otto Quill", **person):
        may = {"id": "may", "role": "consenting", "people": [{"name": consenting}]}
        rules = [ALLOW, rule("somebody", "anonymize", entities=["person"])]
        return policy(*rules, names=[may], person={"model": minifaces.person_path().name, **person}).with_files(
            minifaces.person_path().parent
        )

    was, asked = (
        asking(),
        GenerationRequest("test:A", {Channel.PROMPT: ("a photo of Mara Westgate",)}, {Channel.PROMPT}),
    )
    decision = PolicyInForce(was).decide(asked, Context())
    audit = AuditLog(tmp_path / "log")
    audit.decision(decision, asked)
    audit.close()

    (replayed,) = replay(asking(**changed), (found.fields for found in read_log(tmp_path / "log")), was)

    assert (decision.action, replayed.change) == (Action.ANONYMIZE, change)


@given(
    st.dictionaries(
        st.sampled_from(["action", "channels", "text", "tenant", "reasons", "findings"]),
        st.none() | st.text() | st.integers(),
    )
)
def test_a_record_that_is_none_is_a_typed_error(log, changes):
    """Or one whose change does not matter."""
    folder, _ = log
    record = next(found.fields for found in read_log(folder) if found.fields["event"] == "guard.decision")
    message = "decision"
    try:
        assert list(replay(OLD, [record | changes], OLD))
    except InvalidInput as error:
        message = str(error)
    assert message.startswith("decision")


def test_the_command_counts_and_lists(log, tmp_path, run):
    """As text and as JSON."""
    folder, _ = log
    files = {}
    for name, found in (("new", POLICIES["always"]), ("old", OLD)):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(found.model_dump_json(exclude_none=True))

    ask = partial(run, "policy", "replay")
    code, out, _ = ask(files["new"], folder, "--was", files["old"], "--show", 1)
    assert code == 0
    assert out.startswith("60 calls under p version 1:")
    assert "allow → anonymize" in out
    shown = json.loads(ask(files["new"], folder, "--json", "--show", 3)[1])
    assert shown["calls"] == sum(shown["counts"].values()) == 60
    assert len(shown["listed"]) == 3
    assert ask(files["new"], tmp_path)[0] == 2


def test_the_command_takes_the_calls_of_one_policy_and_of_a_time(tmp_path, run):
    """A log may hold the calls of several guards: those of others would count as undecided, or as changed."""
    prompt = frozenset({Channel.PROMPT})
    times = {}
    with AuditLog(tmp_path / "log") as audit:
        for name in ("mine", "others", "mine"):
            metadata = {"name": name, "version": 1}
            found = POLICIES["always"].model_copy(update={"metadata": type(OLD.metadata).model_validate(metadata)})
            request = GenerationRequest("test:Pipe", {Channel.PROMPT: ("a cat",)}, prompt)
            audit.decision(PolicyInForce(found).decide(request, Context()), request)
    for found in read_log(tmp_path / "log"):
        if found.record.fields["event"] == "guard.decision":
            times.setdefault(found.record.fields["policy"]["name"], []).append(found.record.fields["timestamp"])
    file = tmp_path / "new.yaml"
    file.write_text(POLICIES["always"].model_dump_json(exclude_none=True))

    def count(*options):
        return json.loads(run("policy", "replay", file, tmp_path / "log", "--json", *options)[1])["calls"]

    assert count() == 3
    assert count("--under", "mine") == 2
    assert count("--under", "min") == 0
    assert count("--since", times["others"][0]) == 2
    assert count("--until", times["others"][0], "--under", "mine") == 1
