"""Requests that are made to cost much, to get past a rule, or to write into a terminal."""

import json
import re
import subprocess
import sys
import time

import pytest
from detectors import save_detector
from hypothesis import given
from hypothesis import strategies as st
from policy_documents import policy

from apl_guard import Action, Guard, GuardUnavailable, Policy, PolicyInvalid, RequestTooLarge, decide
from apl_guard.audit import AuditLog
from apl_guard.audit.reading import read_log
from apl_guard.decision.rules import _fits
from apl_guard.detect import Detectors, person
from apl_guard.detect.names import NamesIndex
from apl_guard.detect.person import PersonDetector, PersonMatch
from apl_guard.guard.explain import explain
from apl_guard.in_force.replay import replay
from apl_guard.policy import Person
from apl_guard.request import TEXT_CHANNELS, Channel, GenerationRequest
from apl_guard.request.canonical import canonical
from apl_guard.request.context import Context

BATCH = 16
"""How many windows of a text the model reads at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


def rule(id, action, channels=("prompt",), **when):
    return {"id": id, "when": {"channels": channels, **when}, "then": {"action": action}}


def watched(folder, **settings):
    """A detector, and the number of windows of each run of its model."""
    detector, runs = PersonDetector(Person(model=str(folder), **{"milliseconds": 60_000, **settings}), 0.5), []
    detector._reader.model.register_forward_pre_hook(
        lambda _, args, named: runs.append(len(named["input_ids"])), with_kwargs=True
    )
    return detector, runs


@pytest.mark.parametrize("policy", ["anonymize_faces", "unsafe_allow_all"])
@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": ["a" * 10_000_000] * 10_000},
        {"prompt": [""] * 10_001},
        {"prompt": "a" * 600_000, "negative_prompt": "a" * 400_001},
    ],
    ids=["100 GB", "many", "two channels"],
)
def test_more_text_than_any_request_may_hold_is_refused_and_on_record(
    shared_pipe, prefix, metrics_registry, tmp_path, policy, texts
):
    """By the guard itself, whatever the policy; no letter of it is hashed, kept or drawn."""
    log = tmp_path / "log"
    guard = Guard(shared_pipe, policy=policy, prefix=prefix, audit=log, metrics_registry=metrics_registry)
    with pytest.raises(RequestTooLarge, match=r"found \d+ characters in \d+ texts; a request may hold") as raised:
        guard(**texts)

    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
    refusals = [found.fields for found in read_log(log) if found.fields["event"].startswith("guard.")]
    assert [(r["event"], r["result"], r["error"]) for r in refusals] == [
        ("guard.refusal", "invalid", "RequestTooLarge")
    ]
    assert metrics_registry.get_sample_value("apl_guard_outcomes_total", {"result": "invalid"}) == 1


def test_the_longest_of_many_texts_is_on_record(tmp_path):
    """Beyond the first texts of a channel they share a digest; a replay still knows whether one is too long."""
    tried = policy(rule("all", "unsafe_allow"), limits={"characters": 50, "texts": 1000})
    longer = policy(rule("all", "unsafe_allow"), limits={"characters": 40, "texts": 1000})
    with AuditLog(tmp_path) as audit:
        for longest in (45, 30):
            text = {Channel.PROMPT: ("a cat",) * 80 + ("a" * longest,) + ("a dog",) * 20}
            request = GenerationRequest("test:Pipe", text, frozenset({Channel.PROMPT}))
            audit.decision(decide(tried, request), request)
    replayed = replay(longer, (found.fields for found in read_log(tmp_path)))

    assert [(call.before, call.after) for call in replayed] == [("allow", {"block"}), ("allow", {"allow"})]


@given(st.text(max_size=20), st.text(max_size=20))
def test_only_a_star_stands_for_other_characters(name, other):
    """A tenant whose name looks like a pattern is that tenant and nobody else."""
    name, other = name.replace("*", ""), other.replace("*", "")

    assert _fits(name, name)
    assert _fits(other, name) is (other == name)
    assert _fits(name + other, name + "*")
    assert _fits(name + other, "*" + other)


def test_a_rule_for_one_tenant_opens_nothing_to_another():
    """`lab[1]` is a name, not a class of characters; `lab?` is no wildcard."""
    tried = policy(rule("lab", "unsafe_allow", ["latents"], tenants=["lab[1]", "lab?"]))
    request = GenerationRequest("test:Pipe", {}, frozenset({Channel.LATENTS}))

    answers = {tenant: decide(tried, request, Context(tenant)).action for tenant in ("lab[1]", "lab?", "lab1", "labX")}
    assert answers == {"lab[1]": "allow", "lab?": "allow", "lab1": "block", "labX": "block"}


def test_a_long_text_takes_no_more_memory_than_a_few_windows(folder):
    """The model reads it in parts of bounded size; what it finds is where it is."""
    detector, runs = watched(folder)
    text = ", ".join(["Mara"] * 1500)

    (found,) = detector.find([text], None)
    assert len(runs) > 3
    assert max(runs) == BATCH
    assert (found[0].start, found[-1].end) == (0, len(text))


def test_a_text_that_takes_too_long_is_given_up(folder):
    """Nobody waits for it any more, so the detector turns to the next request instead of finishing."""
    detector, runs = watched(folder, milliseconds=100)
    detector._reader.model.register_forward_hook(lambda *_: time.sleep(0.06))
    with pytest.raises(TimeoutError):
        detector.find(["a " * 5000], None)
    detector._worker.run(lambda: None, 60)  # the next in the queue

    assert len(runs) <= 3 < 5000 / 64 / BATCH


def test_answers_of_unbounded_size_are_not_remembered(folder, monkeypatch):
    """A text with too many persons is looked at anew each time; others come from the cache."""
    detector, runs = watched(folder)
    for most, expected in ((1, 1), (0, 2)):
        monkeypatch.setattr(person, "_MOST_REMEMBERED", most)
        runs.clear()
        for _ in range(2):
            assert len(detector.find([f"Mara {most}"], None)[0]) == 1
        assert len(runs) == expected


def test_names_are_looked_for_once_in_each_text(folder, monkeypatch):
    """However many persons a detector sees in it: for lists, and for those who consent."""

    def every_name(_, texts, tenant):
        return [tuple(PersonMatch(m.start(), m.end(), 1.0) for m in re.finditer("Ada Berg|Mara", t)) for t in texts]

    looked = []
    find = NamesIndex.find
    monkeypatch.setattr(NamesIndex, "find", lambda self, text: looked.append(text) or find(self, text))
    monkeypatch.setattr(PersonDetector, "find", every_name)
    tried = policy(
        rule("persons", "block", entities=["person"]),
        person={"model": str(folder)},
        names=[{"id": "agreed", "role": "consenting", "people": [{"name": "Ada Berg"}]}],
    )
    text = "Ada Berg, Mara, " * 50
    request = GenerationRequest("test:Pipe", {Channel.PROMPT: (text,)}, frozenset({Channel.PROMPT}))
    found = Detectors(tried).look(request).found

    assert len(looked) == 2
    assert {text[finding.start : finding.end] for finding in found} == {"Mara"}
    assert len(found) == 50


def test_everything_is_rewritten_in_a_request_that_is_full_of_names():
    """As many texts of as many channels as one request can have, each with many names."""
    channels = [channel.value for channel in TEXT_CHANNELS]
    tried = policy(
        rule("all", "allow", channels),
        rule("stars", "rewrite", channels, names=["stars"]),
        names=[{"id": "stars", "people": [{"name": "Mara Voss", "neutral": "x"}]}],
    )
    full = "Mara Voss, " * 20
    text = {channel: (full,) * 64 for channel in TEXT_CHANNELS}
    request = GenerationRequest("test:Pipe", text, frozenset(TEXT_CHANNELS))
    decision = decide(tried, request, Context(), Detectors(tried).look(request))

    assert decision.action == Action.REWRITE
    assert len(decision.findings) == 20 * 64 * 8
    assert {said for found in decision.texts.values() for said in found} == {canonical(full).replace("Mara Voss", "x")}


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\u202eabc", "\ud800", "x" * 10_000])
def test_an_error_is_a_line_that_every_terminal_can_show(name):
    """Names of arguments come from the caller."""
    decision = decide(Policy.load("anonymize_faces"), GenerationRequest("test:Pipe", {}, frozenset(), (name,)))

    text = explain(decision)
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 500


def test_a_detectors_folder_runs_no_code(tmp_path, monkeypatch):
    """Code in it is refused, and nobody is asked on the terminal whether to run it."""
    folder = save_detector(tmp_path / "detector")
    config = folder / "config.json"
    own = {"AutoModelForTokenClassification": "own.Model", "AutoConfig": "own.Config"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": own, "model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))

    with pytest.raises(PolicyInvalid, match="no token-classification model"):
        PersonDetector(Person(model=str(folder)), 0.5)
    assert not (tmp_path / "ran").exists()


class TestExit:
    """A program that ends while a detector is at work ends as if there were none."""

    def run(self, program, *arguments, timeout):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        said = [line for line in done.stderr.splitlines() if line and "Loading weights" not in line]
        assert (done.returncode, said) == (0, [])
        return done.stdout

    def test_inside_a_model(self, folder):
        """It is in native code at that moment: torn away there, it would abort the process."""
        program = (
            "import sys, threading, time\n"
            "from apl_guard.detect.person import PersonDetector\n"
            "from apl_guard.policy import Person\n"
            "detector = PersonDetector(Person(model=sys.argv[1], milliseconds=60_000), 0.5)\n"
            "class Slow:\n"  # the interpreter goes away slowly, as it does in programs of many modules
            "    def __del__(self, sleep=time.sleep): sleep(0.5)\n"
            "slow, inside = Slow(), []\n"
            "detector._reader.model.register_forward_pre_hook(lambda *_: inside.append(1))\n"
            "asked = (['a ' * 4000] * 100, None)\n"
            "threading.Thread(target=detector.find, args=asked, daemon=True).start()\n"
            "while not inside: pass\n"
            "print('still at work')\n"
        )
        assert self.run(program, folder, timeout=300) == "still at work\n"

    def test_in_work_that_never_ends(self):
        """For all of it together there is some patience, then the program ends."""
        program = (
            "import threading\n"
            "from apl_guard.detect import worker\n"
            "worker._PATIENCE_SECONDS = 2\n"
            "workers = [worker.Worker(f'w{n}') for n in range(100)]\n"
            "for each in workers:\n"
            "    try:\n"
            "        each.run(threading.Event().wait, 0.001)\n"
            "    except TimeoutError:\n"
            "        pass\n"
        )
        self.run(program, timeout=100)


@pytest.mark.parametrize(
    ("read", "held", "new"),
    [
        (("a",), "b", ("c",)),
        (("a",), ["b"], ("c",)),
        (("a",), 7, ("c",)),
        (("a",), "a", ("c", "d")),
        (("a", "b"), "a", ("c", "d")),
        (("a", "b"), ["b", "a"], ("c", "d")),
        (("a", "b"), ["a", "b"], ("c",)),
        ((), None, ("c",)),
    ],
)
def test_texts_take_the_place_of_those_that_were_read_and_of_nothing_else(read, held, new):
    """An adapter whose arguments say something else would run what nobody looked at."""
    asked = GenerationRequest("x:Y", {Channel.PROMPT: read}, frozenset({Channel.PROMPT}), (), {"prompt": held})

    with pytest.raises(GuardUnavailable, match=f"'prompt' does not hold the {len(new)} texts"):
        asked.saying({Channel.PROMPT: new})
