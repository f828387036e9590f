"""What is found in a request, and what is done about it: anonymized, rewritten, blocked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_documents import policy

from apl_guard import Action, Guard, Policy, PolicyBlocked, PolicyInvalid, decide
from apl_guard.detect import Detectors
from apl_guard.detect.names import NamesIndex
from apl_guard.policy import Names, built_in_policies
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.canonical import canonical

PEOPLE = [{"name": "Mara Voss", "aliases": ["M. Voss"], "neutral": "a tall woman"}, {"name": "Kai Lund"}]
ALLOW = {"id": "allow", "when": {"channels": ["prompt", "negative_prompt"]}, "then": {"action": "allow"}}
STARS = {"id": "stars", "people": PEOPLE}


def named(action, channels=("prompt",), id="named", **then):
    return {"id": id, "when": {"channels": channels, "names": ["stars"]}, "then": {"action": action, **then}}


OTHERS = {"when": {"channels": ["prompt"], "names": ["others"]}}


def ask(found, *prompts, negative=(), **others):
    """The decision about prompts."""
    text = {Channel.PROMPT: prompts, Channel.NEGATIVE_PROMPT: negative}
    text = {channel: texts for channel, texts in text.items() if texts}
    request = GenerationRequest("test:Pipe", text, frozenset(text), **others)
    return decide(found, request, None, Detectors(found).look(request))


def test_a_rule_about_names_applies_where_one_is_found():
    """And only there, in the channel that it names."""
    found = policy(ALLOW, named("block", category="likeness"), names=[STARS])

    assert ask(found, "a cat").action == Action.ALLOW
    assert ask(found, "a cat", negative=("Mara Voss",)).action == Action.ALLOW
    decision = ask(found, "a cat", "MARA  VOSS")
    assert (decision.action, decision.category) == (Action.BLOCK, "likeness")
    assert [(f.source, f.channel, f.text, f.start, f.end) for f in decision.findings] == [
        ("names.stars", Channel.PROMPT, 1, 0, 9)
    ]


def test_a_rule_about_one_list_says_nothing_about_another():
    """Somebody on a list that another rule asks about is nobody to this one."""
    others = {"id": "others", "people": [{"name": "Ada Moor"}]}
    found = policy(ALLOW, named("block"), named("anonymize", id="o") | OTHERS, names=[STARS, others])

    assert ask(found, "Ada Moor").action == Action.ANONYMIZE
    assert ask(found, "Mara Voss").action == Action.BLOCK


def test_what_was_looked_at_is_what_runs():
    """The canonical text, whatever was decided, as long as it runs at all."""
    found = policy(ALLOW, named("anonymize"), names=[STARS])
    odd = "a  c\u200bat by \uff2dara"

    assert ask(found, odd).texts == {Channel.PROMPT: ("a cat by Mara",)}
    assert ask(found, "a cat", negative=(odd,)).texts[Channel.NEGATIVE_PROMPT] == ("a cat by Mara",)
    assert ask(found, "Ma\u00adra  Voss").texts == {Channel.PROMPT: ("Mara Voss",)}


@pytest.mark.parametrize("spec", [{"mode": "shadow"}, {"mode": "unsafe_off"}, {"rollout": {"percent": 0}}])
def test_what_is_not_carried_out_changes_no_text(spec):
    """In shadow the request runs as it came."""
    decision = ask(policy(ALLOW, named("rewrite"), names=[STARS], **spec), "Mara  Voss")

    assert (decision.effective, decision.texts) == (Action.ALLOW, {})


def test_a_policy_that_does_not_look_at_texts_changes_none():
    """An always-on prefix needs no canonical text."""
    assert ask(policy(named("anonymize") | {"when": {"channels": ["prompt"]}}), "a  cat").texts == {}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Mara Voss", "a tall woman"),
        ("m. voss and KAI LUND, Mara-Voss", "a tall woman and a person, a tall woman"),
        ("Mara Voss's dog", "a tall woman's dog"),
        ("a cat", "a cat"),
    ],
)
def test_rewrite_puts_the_neutral_description_in_place_of_the_name(prompt, expected):
    """Of every occurrence of names and aliases."""
    decision = ask(policy(ALLOW, named("rewrite"), names=[STARS]), prompt)

    assert decision.texts == {Channel.PROMPT: (expected,)}
    assert decision.action == (Action.ALLOW if prompt == expected else Action.REWRITE)
    assert not decision.prefixed


def test_where_names_overlap_one_description_stands_for_all():
    """Nothing of either name is left."""
    people = [{"name": "Anna Maria"}, {"name": "Maria Lopez"}, {"name": "Anna Maria Lopez", "neutral": "her"}]
    found = policy(ALLOW, named("rewrite"), names=[{"id": "stars", "people": people}])

    assert ask(found, "Anna Maria Lopez").texts[Channel.PROMPT] == ("her",)
    assert ask(found, "see Anna Maria Lopezky").texts[Channel.PROMPT] == ("see a person Lopezky",)


def test_of_namesakes_the_first_on_the_list_says_what_is_written():
    """Each time, so that the same prompt and seed draw the same picture in every process."""
    people = [{"name": "Mara Voss", "neutral": f"{number}"} for number in range(20)]

    assert ask(policy(ALLOW, named("rewrite"), names=[STARS | {"people": people}]), "Mara Voss").texts == {
        Channel.PROMPT: ("0",)
    }


def test_rewrite_and_the_prefix_go_together():
    """A stricter rule takes nothing away from what another rule asks for."""
    always = {"id": "always", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}

    decision = ask(policy(always, named("rewrite"), names=[STARS]), "Mara Voss")

    assert (decision.action, decision.prefixed) == (Action.REWRITE, True)
    assert decision.texts[Channel.PROMPT] == ("a tall woman",)


letters = st.text(st.sampled_from("Mara Vos \u200b.,'-K"), max_size=30)


@given(
    st.lists(st.sampled_from(["Mara Voss", "M. Voss", "Kai Lund", "mara-voss", "KAI\u00a0LUND"]), max_size=4), letters
)
def test_no_name_is_left_in_what_runs(names, between):
    """Whatever stands between the names."""
    found = policy(ALLOW, named("rewrite"), names=[STARS])
    prompt = f" {between} ".join(["", *names, ""])

    (runs,) = ask(found, prompt).texts[Channel.PROMPT]

    assert NamesIndex([Names(**STARS)]).find(canonical(runs)) == []


class TestWithoutPrefix:
    """A backend that takes text alone: `anonymize` becomes what the policy says, and the decision says so."""

    def test_blocked_unless_the_policy_says_otherwise(self):
        """Only where a name asks for the prefix."""
        found = policy(ALLOW, named("anonymize"), names=[STARS])

        assert ask(found, "a cat", carries_prefix=False).action == Action.ALLOW
        assert ask(found, "Mara Voss", carries_prefix=False).action == Action.BLOCK

    def test_rewritten_where_the_policy_says_so(self):
        """All names of all lists, and no prefix is said to be in front."""
        always = {"id": "always", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}
        found = policy(always, names=[STARS], without_prefix="rewrite")

        decision = ask(found, "Mara Voss and a cat", carries_prefix=False)

        assert (decision.action, decision.effective, decision.prefixed) == (Action.REWRITE, Action.REWRITE, False)
        assert decision.texts[Channel.PROMPT] == ("a tall woman and a cat",)
        assert "no prefix can reach" in decision.reasons[0].why
        assert ask(found, "Mara Voss").action == Action.ANONYMIZE

    def test_rewritten_in_the_channels_that_the_prefix_was_for(self):
        """A negative prompt that a rule lets pass says whom the picture shall not show, and goes on saying it."""
        always = {"id": "always", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}
        negative = {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}}
        found = policy(always, negative, names=[STARS], without_prefix="rewrite")

        decision = ask(found, "Mara Voss", negative=("Kai Lund",), carries_prefix=False)

        assert decision.texts == {Channel.PROMPT: ("a tall woman",), Channel.NEGATIVE_PROMPT: ("Kai Lund",)}

    def test_rewriting_needs_something_to_look_for(self):
        """Else every prompt would pass unprotected."""
        with pytest.raises(ValueError, match="needs 'names'"):
            policy(named("block") | {"when": {"channels": ["prompt"]}}, without_prefix="rewrite")


def test_where_nobody_looked_nothing_passes():
    """A decision without findings, about a policy that needs them."""
    found = policy(ALLOW, named("anonymize"), names=[STARS])
    request = GenerationRequest("test:Pipe", {Channel.PROMPT: ("a cat",)}, frozenset({Channel.PROMPT}))

    decision = decide(found, request)

    assert decision.action == Action.BLOCK
    assert decision.reasons[0].why == "names.stars did not look; on_error: block"


def test_what_cannot_look_keeps_nothing_else_from_looking(monkeypatch):
    """Else what was never looked for would count as not there."""
    block = {"id": "b", "when": {"channels": ["prompt"], "patterns": ["cats"]}, "then": {"action": "block"}}
    tried = policy(
        ALLOW, named("anonymize"), block,
        names=[STARS], patterns=[{"id": "cats", "regex": "cat"}], on_error="unsafe_passthrough",
    )  # fmt: skip
    monkeypatch.setattr(NamesIndex, "find", lambda *_: 1 / 0)
    request = GenerationRequest("test:Pipe", {Channel.PROMPT: ("a cat",)}, frozenset({Channel.PROMPT}))

    findings = Detectors(tried).look(request)

    assert [found.source for found in findings.found] == ["pattern.cats"]
    assert (findings.looked, findings.failed) == ({"pattern.cats"}, {"names.stars": "ZeroDivisionError"})
    assert decide(tried, request, findings=findings).action == Action.BLOCK


class TestPatterns:
    """Expressions of the user, in RE2."""

    def patterned(self, regex, **others):
        rule = {"id": "r", "when": {"channels": ["prompt"], "patterns": ["president"]}, "then": {"action": "rewrite"}}
        return policy(ALLOW, rule, patterns=[{"id": "president", "regex": regex, **others}])

    def test_a_pattern_is_found_and_rewritten(self):
        """In the canonical text."""
        found = self.patterned(r"(?i)\bthe \d+(th|st|nd|rd) president\b", neutral="a politician")

        decision = ask(found, "The  44\u200bth president waves")

        assert decision.texts[Channel.PROMPT] == ("a politician waves",)
        assert decision.findings[0].source == "pattern.president"

    @pytest.mark.parametrize(
        "regex", ["(", r"(?=x)", r"(a)\1", "a{100000}", "(?P<x", "(((((a{30}){30}){30}){30}){30})"]
    )
    def test_what_re2_does_not_take_is_no_pattern(self, regex):
        """Named, before any prompt comes."""
        with pytest.raises(PolicyInvalid, match="pattern 'president'"):
            Detectors(self.patterned(regex))

    def test_a_pattern_that_hangs_other_engines_does_not_hang_this_one(self):
        """Nested repeats, which take Python's own engine longer than the age of the universe."""
        assert ask(self.patterned(r"^(\w+\s?)*$"), "a" * 9000 + "!").action == Action.ALLOW

    def test_an_empty_match_is_nothing(self):
        """Else it would be everywhere."""
        assert ask(self.patterned("x*"), "a cat").findings == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"names": []}, "rules ask for names.stars; the policy has none"),
        ({"names": [STARS, {"id": "more", "people": PEOPLE}]}, "no rule asks for names.more"),
        ({"names": [STARS, STARS]}, "two have the same id"),
        ({"names": [{"id": "stars"}]}, "either 'people' or 'file'"),
        ({"names": [STARS | {"file": "x.csv"}]}, "either 'people' or 'file'"),
        ({"names": [STARS | {"sha256": "0" * 64}]}, "'sha256' belongs to 'file'"),
        ({"rules": [ALLOW, named("rewrite") | {"when": {"channels": ["prompt"]}}]}, "'rewrite' needs a condition"),
        ({"rules": [ALLOW, named("rewrite") | {"when": {"channels": ["latents"]}}]}, "could be rewritten"),
        ({"rules": [ALLOW, named("block", ["latents"])]}, "hold no text"),
    ],
)
def test_nothing_stands_in_a_policy_without_an_effect(change, expected):
    """What rules ask for must be there, and what is there must be asked for."""
    with pytest.raises(ValueError, match=expected):
        policy(*change.pop("rules", [ALLOW, named("block")]), **{"names": [STARS], **change})


def test_the_digest_covers_the_lists(tmp_path):
    """Of a file, its bytes."""
    path = tmp_path / "policy.yaml"
    text = policy(ALLOW, named("block"), names=[{"id": "stars", "file": "stars.csv"}]).model_dump_json(
        exclude_none=True
    )
    path.write_text(text)
    digests = set()
    for names in ("name\nMara Voss\n", "name\nKai Lund\n"):
        (tmp_path / "stars.csv").write_text(names)
        digests.add(Policy.load(path).digest)
    (tmp_path / "stars.csv").unlink()

    assert len(digests) == 2
    with pytest.raises(PolicyInvalid, match=r"stars\.csv: cannot be read"):
        Policy.load(path)


def test_built_in_policies_for_names_take_the_list_of_the_platform(tmp_path, monkeypatch):
    """From the folder that the environment names."""
    monkeypatch.setenv("APL_GUARD_NAMES", str(tmp_path))
    with pytest.raises(PolicyInvalid, match=r"protected\.csv"):
        Policy.load("block_named")
    (tmp_path / "protected.csv").write_text("name\nMara Voss\n")

    asked = {name: ask(Policy.load(name), "Mara Voss").action for name in ("block_named", "anonymize_named")}
    passed = {name: ask(Policy.load(name), "a cat").action for name in asked}

    assert asked == {"block_named": Action.BLOCK, "anonymize_named": Action.ANONYMIZE}
    assert set(passed.values()) == {Action.ALLOW}
    assert set(built_in_policies()) == {
        "anonymize_faces",
        "anonymize_named",
        "anonymize_persons",
        "anonymize_personalised",
        "block_named",
        "shadow_anonymize_faces",
        "unsafe_allow_all",
    }


class TestThroughTheGuard:
    """The decision is what the pipe gets."""

    def test_a_rewritten_prompt_draws_the_picture_of_the_neutral_one(self, shared_pipe, draw, tmp_path):
        """Bit for bit; the record says where, and never what."""
        guard = Guard(shared_pipe, policy(ALLOW, named("rewrite"), names=[STARS]), audit=tmp_path)

        drawn = draw(guard, "a photo of M\u0430ra  Voss")

        assert (drawn == draw(shared_pipe, "a photo of a tall woman")).all()
        content = "".join(path.read_text() for path in (tmp_path / "segments").iterdir())
        assert "Mara" not in content
        assert "tall" not in content
        assert '"source":"names.stars"' in content.replace(": ", ":")

    def test_batches_and_negative_prompts_are_rewritten_too(self, shared_pipe, draw):
        """Each text of its own."""
        guard = Guard(shared_pipe, policy(ALLOW, named("rewrite", ["prompt", "negative_prompt"]), names=[STARS]))

        drawn = draw(guard, ["a cat", "Kai Lund"], negative_prompt=["Mara Voss", "blur"])

        expected = draw(shared_pipe, ["a cat", "a person"], negative_prompt=["a tall woman", "blur"])
        assert (drawn == expected).all()

    def test_a_prompt_made_of_names_is_refused_on_record(self, shared_pipe, tmp_path):
        """However many there are: the record holds the first and their number."""
        guard = Guard(shared_pipe, policy(ALLOW, named("block"), names=[STARS]), audit=tmp_path)

        with pytest.raises(PolicyBlocked):
            guard(["Mara Voss " * 900] * 64)
        (record,) = [
            json.loads(line)
            for path in (tmp_path / "segments").iterdir()
            for line in path.read_text().splitlines()
            if '"guard.decision"' in line
        ]
        assert (len(record["findings"]), record["findings_count"]) == (100, 900 * 64)

    def test_the_prefix_goes_in_front_where_somebody_is_named(self, shared_pipe, prefix, draw):
        """And nowhere else."""
        guard = Guard(shared_pipe, policy(ALLOW, named("anonymize"), names=[STARS]), prefix=prefix)
        always = Guard(shared_pipe, prefix=prefix)

        assert (draw(guard, "Mara Voss") == draw(always, "Mara Voss")).all()
        assert (draw(guard, "a cat") == draw(shared_pipe, "a cat")).all()

    def test_the_error_says_which_list_and_not_which_name(self, shared_pipe):
        """It goes to whoever asked."""
        guard = Guard(shared_pipe, policy(ALLOW, named("block", category="likeness"), names=[STARS]))

        with pytest.raises(PolicyBlocked, match=r"rule 'named' \(category likeness\)") as caught:
            guard("Mara Voss")
        assert "Mara" not in str(caught.value) + json.dumps(caught.value.decision.model_dump(mode="json"))
