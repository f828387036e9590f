"""Policies: what is read, what is refused, what is decided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard import Action, Policy, PolicyInvalid, decide
from apl_guard.policy import Mode, Rule
from apl_guard.request import Channel, GenerationRequest

GOOD = """
api: apl-guard/v1
name: mine
version: 2
rules:
  - id: prompts
    channels: [prompt, negative_prompt]
    action: allow
"""


def request(*used, unknown=()):
    return GenerationRequest("test:Pipe", {}, frozenset(used), unknown)


def load(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return Policy.load(path)


def test_a_file_is_read(tmp_path):
    """Mode is enforce unless another is given."""
    policy = load(tmp_path, GOOD)

    assert (policy.name, policy.version, policy.mode) == ("mine", 2, Mode.ENFORCE)
    assert policy.rules[0].channels == (Channel.PROMPT, Channel.NEGATIVE_PROMPT)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 2", "version: 2\nsurprise: 1", "surprise"),
        ("version: 2", "version: 0", "version"),
        ("version: 2", "mode: enforced\nversion: 2", "mode"),
        ("name: mine", "name: mine\nname: other", "twice"),
        ("name: mine", "name: ../mine", "name"),
        ("apl-guard/v1", "apl-guard/v2", "api"),
        ("action: allow", "action: alow", "rules.0.action"),
        ("action: allow", "action: anonymize", "negative_prompt"),
        ("[prompt, negative_prompt]", "[promt]", "rules.0.channels"),
        ("[prompt, negative_prompt]", "[]", "rules.0.channels"),
        ("rules:", "rules: []\nothers:", "rules"),
        ("rules:", "rules: [", "YAML in line"),
        ("name: mine", "name: !!python/object/apply:os.system [ls]", "YAML"),
        ("  - id: prompts", "  - {id: prompts, channels: [prompt], action: allow}\n  - id: prompts", "same id"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, expected):
    """Path and field, or path and line."""
    with pytest.raises(PolicyInvalid, match=expected) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert "policy.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "just text", "- a list", "\x00"])
def test_a_file_that_is_no_policy(tmp_path, text):
    """An empty policy is an error, not a policy that allows everything."""
    with pytest.raises(PolicyInvalid):
        load(tmp_path, text)


def test_a_policy_that_is_not_there():
    """The built-in names are in the message."""
    with pytest.raises(PolicyInvalid, match="anonymize_faces"):
        Policy.load("anonymise_faces")


def test_the_digest_is_that_of_the_content(tmp_path):
    """Comments do not count, values do."""
    digest = load(tmp_path, GOOD).digest

    assert load(tmp_path, "# comment\n" + GOOD).digest == digest
    assert load(tmp_path, GOOD.replace("version: 2", "version: 3")).digest != digest


@pytest.mark.smoke
def test_the_default_policy_puts_the_prefix_on_every_prompt_and_blocks_the_rest():
    """Every channel there is has a rule in it."""
    policy = Policy.load("anonymize_faces")
    actions = {channel: decide(policy, request(channel)).action for channel in Channel}

    assert actions.pop(Channel.PROMPT) == Action.ANONYMIZE
    assert actions.pop(Channel.NEGATIVE_PROMPT) == Action.ALLOW
    assert set(actions.values()) == {Action.BLOCK}


def test_unsafe_allow_all_names_every_channel():
    """A new channel must be thought about there too."""
    policy = Policy.load("unsafe_allow_all")

    assert decide(policy, request(*Channel)).action == Action.ALLOW


def test_what_no_rule_names_is_blocked(tmp_path):
    """Also an argument that no channel is known for."""
    policy = load(tmp_path, GOOD)

    assert decide(policy, request(Channel.PROMPT)).action == Action.ALLOW
    assert decide(policy, request(Channel.PROMPT, Channel.LATENTS)).action == Action.BLOCK
    decision = decide(policy, request(Channel.PROMPT, unknown=("surprise",)))
    assert decision.action == Action.BLOCK
    assert decision.reasons[-1].rule is None


rules = st.builds(
    lambda number, channels, action: Rule(id=f"r{number}", channels=channels, action=action),
    st.integers(0, 10**9),
    st.lists(st.sampled_from(Channel), min_size=1, max_size=4).map(tuple),
    st.sampled_from([Action.ALLOW, Action.BLOCK]),
)


@given(st.lists(rules, min_size=1, max_size=6, unique_by=lambda r: r.id), st.sets(st.sampled_from(Channel)), rules)
def test_the_order_of_rules_does_not_count_and_more_rules_are_never_more_lenient(found, used, other):
    """For channels that are named anyway."""
    asked = request(*used)
    extra = Rule(id="extra", channels=found[0].channels, action=other.action)
    action, reversed_action, action_with_more = (
        decide(Policy(name="p", version=1, rules=tuple(rules)), asked).action
        for rules in (found, found[::-1], [*found, extra])
    )

    assert action == reversed_action
    assert action_with_more.strictness >= action.strictness


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_only_enforce_is_carried_out(mode):
    """In shadow the action is still said, off says nothing."""
    policy = Policy(**Policy.load("anonymize_faces").model_dump() | {"mode": mode})

    decision = decide(policy, request(Channel.PROMPT, Channel.LATENTS))

    assert decision.effective == Action.ALLOW
    assert decision.action == (Action.BLOCK if mode == "shadow" else Action.ALLOW)


def test_a_request_shows_no_content():
    """It may appear in a log or a traceback."""
    asked = GenerationRequest("test:Pipe", {Channel.PROMPT: ("Mara Voss",)}, frozenset(), (), {"prompt": "Mara Voss"})

    assert "Mara" not in repr(asked)


def test_what_no_prefix_can_reach_is_blocked():
    """Where a rule wants the prompt anonymized and the backend cannot take a prefix, the prompt does not pass."""
    asked = GenerationRequest(
        "test:Service", {Channel.PROMPT: ("a cat",)}, frozenset({Channel.PROMPT}), carries_prefix=False
    )

    decision = decide(Policy.load("anonymize_faces"), asked)

    assert decision.effective == Action.BLOCK
    assert decision.reasons[0].rule == "prefix-on-every-prompt"
