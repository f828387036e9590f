"""Policies: what is read, what is refused, and that nothing in a file can do harm."""

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apl_guard import Action, Policy, PolicyInvalid
from apl_guard.decision import decide
from apl_guard.policy import Mode, Verb, built_in_policies
from apl_guard.policy.yaml_tree import MAX_BYTES, MAX_DEPTH, read_tree
from apl_guard.request import PROMPT_CHANNELS, TEXT_CHANNELS, Channel, GenerationRequest

GOOD = """\
apiVersion: apl-guard/v1
kind: Policy
metadata:
  name: mine
  version: 2
spec:
  rules:
    - id: prompts
      when: {channels: [prompt]}
      then: {action: anonymize}
    - id: negative
      when: {channels: [negative_prompt]}
      then: {action: allow}
"""
TWO_TESTS = """\
tests:
  - {name: nobody, given: {prompt: a cat}, expect: {action: anonymize}}
  - {name: nobody, given: {prompt: a dog}, expect: {action: anonymize}}
"""


def request(*used, unknown=()):
    return GenerationRequest("test:Pipe", {}, frozenset(used), unknown)


def load(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Policy.load(path)


def test_a_file_is_read(tmp_path):
    """Mode is enforce unless another is given."""
    policy = load(tmp_path, GOOD)

    assert (policy.name, policy.version, policy.mode) == ("mine", 2, Mode.ENFORCE)
    assert policy.rules[0].when.channels == (Channel.PROMPT,)
    assert policy.rules[0].then.action == Verb.ANONYMIZE


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  version: 2", "  version: 2\n  ownr: x", r"line 6: unknown key 'metadata.ownr'; did you mean 'owner'\?"),
        ("{action: allow}", "{action: allow, zzz: 1}", r"unknown key 'spec.rules.1.then.zzz'; expected action, cat"),
        ("when: {channels: [prompt]}", "when: {chanels: [prompt]}", r"'spec.rules.0.when.channels' is missing"),
        ("  version: 2", "  version: 0", "line 5: 'metadata.version'"),
        ("spec:", "spec:\n  mode: shadov", r"line 7: 'spec.mode' is 'shadov'; .*did you mean 'shadow'\?"),
        ("spec:", "spec:\n  mode: SHADOW", r"'spec.mode' is 'SHADOW'; .*did you mean 'shadow'\?"),
        ("spec:", "spec:\n  mode: off", r"did you mean 'unsafe_off'\?"),
        ("spec:", "spec:\n  on_error: passthrough", r"did you mean 'unsafe_passthrough'\?"),
        ("  name: mine", "  name: mine\n  name: other", "line 5: a key appears twice"),
        ("name: mine", "name: ../mine", "metadata.name"),
        ("apl-guard/v1", "apl-guard/v2", "'apiVersion' is 'apl-guard/v2'; expected 'apl-guard/v1'"),
        ("action: allow", "action: alow", r"line 13: 'spec.rules.1.then.action' is 'alow'; .*did you mean 'allow'"),
        ("[prompt]", "[prompt, negative_prompt]", r"a prefix protects \['prompt', .*\] only; \['negative_prompt'\]"),
        ("[negative_prompt]", "[latents]", r"no prefix protects \['latents'\]; .*'unsafe_allow'"),
        ("{action: anonymize}", "{action: allow}", "no rule protects prompts; .*'unsafe_allow'"),
        ("{action: allow}", "{action: allow, category: x}", "'category' belongs to action 'block'"),
        ("{action: allow}", "{action: allow, strength: 0.5}", "'strength' belongs to action 'anonymize'"),
        ("{action: anonymize}", "{action: anonymize, strength: 0}", "strength.*greater than 0"),
        ("{action: anonymize}", "{action: anonymize, strength: nan}", "strength.*finite"),
        ("spec:", "spec:\n  rollout: {percent: 101}", "spec.rollout.percent.*less than or equal to 100"),
        ("[prompt]", "[promt]", r"'spec.rules.0.when.channels.0' is 'promt'; .*did you mean 'prompt'\?"),
        ("[prompt]", "[]", r"'spec.rules.0.when.channels' is \[\]; expected at least one entry$"),
        (
            "[prompt]",
            "prompt",
            r"line 9: 'spec.rules.0.when.channels' is 'prompt'; expected a list, such as \[one, ano.*\]$",
        ),
        (
            "{action: anonymize}",
            "anonymize",
            r"'spec.rules.0.then' is 'anonymize'; expected a mapping of keys to values$",
        ),
        ("  version: 2", "  version: two", "'metadata.version' is 'two'; expected a whole number$"),
        (
            "id: negative",
            "id: Negative",
            r"line 11: 'spec.rules.1.id': expected a text that should match pattern '.*'$",
        ),
        ("  rules:", "  rules: []\n  others:", "rules"),
        ("  rules:", "  rules: [", "line 8: not valid YAML"),
        ("name: mine", "name: !!python/object/apply:os.system [ls]", "tags are not allowed"),
        ("name: mine", "name: &a mine", "anchors and aliases"),
        ("kind: Policy", "kind: Policy\n<<: *a", "anchors and aliases"),
        ("id: negative", "id: prompts", "same id"),
        (GOOD, GOOD + TWO_TESTS, "'tests': two have the same name"),
        (GOOD, GOOD + "---\n" + GOOD, "second document"),
        (GOOD, "", "empty"),
        (GOOD, "just text", "policy"),
        (GOOD, "- a list", "policy"),
        (GOOD, "\x00", "not valid YAML"),
        ("version: 2", "version: 2\n  description: '" + "x" * MAX_BYTES + "'", "larger than 262144"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, expected):
    """Path, line and field, and what the author may have meant."""
    assert old in GOOD
    with pytest.raises(PolicyInvalid, match=expected) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert "policy.yaml" in str(caught.value)


def test_scalars_are_what_stands_in_the_file():
    """YAML would make False, 8, 45000 and None of these."""
    assert read_tree(b"[no, 010, 12:30:00, ~, 1e3]", "x").root == ["no", "010", "12:30:00", "~", "1e3"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10_000,
        b"- " * 10_000,
        b"{a: " * 10_000,
        b"a: " + b"&a [" * 30 + b"]" * 30,
        b"? " * 5_000,
        b'"\\UFFFFFFFF"',
        b'"\\ud800"',
        b"%YAML 9.9\n---\na",
        b"a: |\n  \x1b[31m",
        b"\xff\xfe\x00\xd8",
        b"\xef\xbb\xbf\xff",
        b"!<tag:yaml.org,2002:python/name:os.system> x",
        b"a: *b",
    ],
)
def test_hostile_files_are_refused(content):
    """With a typed error, in bounded time, and without a letter that a terminal obeys in the message."""
    with pytest.raises(PolicyInvalid) as caught:
        Policy.parse(content)
    assert str(caught.value).isprintable()


def test_a_file_in_another_encoding_is_told_which_is_expected(tmp_path):
    """No parser of YAML reads these bytes."""
    for encoding in ("utf-32", "utf-16-be"):
        with pytest.raises(PolicyInvalid, match="expected UTF-8"):
            load(tmp_path, GOOD.encode(encoding))


def test_size_and_nesting_are_bounded():
    """At the bound, not only far beyond it."""
    assert read_tree(b"a" * MAX_BYTES, "x")
    with pytest.raises(PolicyInvalid, match="at most 262144"):
        read_tree(b"a" * (MAX_BYTES + 1), "x")
    assert read_tree(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "x")
    with pytest.raises(PolicyInvalid, match="nested deeper"):
        read_tree(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "x")


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(content):
    """A policy or a typed error."""
    with pytest.raises(PolicyInvalid):
        Policy.parse(content)


KEYS = ["apiVersion", "kind", "metadata", "spec", "rules", "when", "then", "action", "channels", "name", "version"]
SIGNS = ["{}", "[]", "{a:", "&x", "*x", "!!int", "-", "?", ":", "|", ">", "'", '"', "#", "%", "@", "1e999", "\u202e"]
words = st.sampled_from([*KEYS, *SIGNS, "\ud7ff", "\x85"])


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 40), words)
@example(0, len(GOOD), "x")
def test_no_edit_of_a_good_file_breaks_the_reader(start, length, word):
    """A policy or a typed error, whose message a terminal can show."""
    edited = GOOD[:start] + word + GOOD[start + length :]
    message = ""
    try:
        Policy.parse(edited.encode("utf-8", "surrogatepass"))
    except PolicyInvalid as error:
        message = str(error)
    assert message.isprintable()


def test_a_policy_that_is_not_there():
    """The built-in names are in the message."""
    for name in ("anonymise_faces", "no\x00path", "", "."):
        with pytest.raises(PolicyInvalid, match="anonymize_faces"):
            Policy.load(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("content", [{"spec": {"names": ["Mara Voss"]}}, None, 7])
def test_what_is_no_path_is_named_by_its_type(content):
    """A dict is not quoted, for it may list people; the message says what makes a policy of it."""
    with pytest.raises(PolicyInvalid, match=rf"found {type(content).__name__}; .*Policy\.model_validate") as caught:
        Policy.load(content)
    assert "Mara" not in str(caught.value)


def test_a_policy_in_a_mode_that_there_is_not_is_not_made():
    """One would let every request pass: no mode but one carries decisions out."""
    policy = Policy.load("anonymize_faces")

    with pytest.raises(ValueError, match="enforced"):
        policy.in_mode("enforced")
    assert policy.in_mode("shadow").mode is Mode.SHADOW


def test_a_file_that_never_ends_is_not_read_to_its_end():
    """A device is refused."""
    with pytest.raises(PolicyInvalid, match="not a regular file"):
        Policy.load("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_part_of_a_policy_is_not_taken_for_the_whole():
    """As in `policy explain <(kubectl … )`, where the rules that block may come a moment later."""
    reader, writer = os.pipe()
    os.write(writer, GOOD.encode())
    try:
        with pytest.raises(PolicyInvalid, match="not a regular file"):
            Policy.load(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_the_digest_is_that_of_the_content(tmp_path):
    """Comments do not count, values do."""
    digest = load(tmp_path, GOOD).digest

    assert load(tmp_path, "# comment\n" + GOOD).digest == digest
    assert load(tmp_path, GOOD.replace("version: 2", "version: 3")).digest != digest


def test_a_policy_cannot_be_changed(tmp_path):
    """Neither as a whole nor in its parts."""
    policy = load(tmp_path, GOOD)
    for part, field in ((policy, "spec"), (policy.spec, "mode"), (policy.rules[0].then, "action")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, field, None)


def test_a_policy_as_json_is_the_same_policy(tmp_path):
    """JSON is YAML, so what `policy show --json` prints can be loaded."""
    policy = load(tmp_path, GOOD)

    dumped = json.dumps(policy.model_dump(mode="json", exclude_none=True))

    assert load(tmp_path, dumped).digest == policy.digest


@pytest.mark.smoke
@pytest.mark.parametrize("name", sorted(built_in_policies()))
def test_a_built_in_policy_names_every_channel(name):
    """A new channel must be thought about in each of them."""
    policy = Policy.parse(built_in_policies()[name].read_bytes())

    assert policy.name == name
    assert {channel for rule in policy.rules for channel in rule.when.channels} == set(Channel)


@pytest.mark.smoke
def test_the_default_policy_puts_the_prefix_on_every_prompt_and_blocks_the_rest():
    """Every channel there is has a rule in it."""
    policy = Policy.load("anonymize_faces")
    actions = {channel: decide(policy, request(channel)).action for channel in Channel}

    assert {actions.pop(channel) for channel in PROMPT_CHANNELS} == {Action.ANONYMIZE}
    assert {actions.pop(channel) for channel in set(TEXT_CHANNELS) - set(PROMPT_CHANNELS)} == {Action.ALLOW}
    assert set(actions.values()) == {Action.BLOCK}


def test_shadow_anonymize_faces_says_what_anonymize_faces_says():
    """But in mode shadow."""
    shadow, enforced = Policy.load("shadow_anonymize_faces"), Policy.load("anonymize_faces")

    assert shadow.rules == enforced.rules
    assert (shadow.mode, enforced.mode) == (Mode.SHADOW, Mode.ENFORCE)


def test_unsafe_allow_all_allows_everything_and_says_so():
    """Each channel is named among what switches protection off."""
    decision = decide(Policy.load("unsafe_allow_all"), request(*Channel))

    assert decision.effective == Action.ALLOW
    assert len(decision.unsafe) == len(Channel)
