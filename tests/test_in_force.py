"""Policies in force: their own tests, reloading while calls run, and what the command line shows of them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jsonschema
import pytest
import yaml

from apl_guard import DetectorFailed, Guard, InvalidInput, Policy, PolicyBlocked, PolicyInvalid, PrefixNotFound
from apl_guard.in_force import PolicyInForce
from apl_guard.policy import built_in_policies

STARS = """\
apiVersion: apl-guard/v1
kind: Policy
metadata: {name: mine, version: 1}
spec:
  names:
    - id: stars
      file: stars.csv
  rules:
    - id: prompts
      when: {channels: [prompt, negative_prompt]}
      then: {action: allow}
    - id: rewrite-stars
      when: {channels: [prompt], names: [stars]}
      then: {action: rewrite}
    - id: lab
      when: {channels: [latents], tenants: [lab], routes: [edit], models: ["test:*"]}
      then: {action: unsafe_allow}
    - id: refuse
      when: {channels: [negative_prompt], names: [stars]}
      then: {action: block, category: likeness}
"""
TESTS = """\
tests:
  - name: a star is rewritten
    given: {prompt: a photo of MARA voss}
    expect: {action: rewrite, rule: rewrite-stars, prompt: a photo of a woman}
  - name: nobody
    given: {prompt: a cat}
    expect: {action: allow, prompt: a cat}
  - name: the lab
    given: {channels: [latents], tenant: lab, route: edit}
    expect: {action: allow, rule: lab}
  - name: the lab on another way
    given: {channels: [latents], tenant: lab}
    expect: {action: block}
  - name: the lab with another model
    given: {channels: [latents], tenant: lab, route: edit, model: "other:Pipe"}
    expect: {action: block}
  - name: negative
    given: {negative_prompt: Mara Voss}
    expect: {action: block, category: likeness}
"""


@pytest.fixture
def path(tmp_path):
    """A policy file with a list beside it."""
    (tmp_path / "stars.csv").write_text("name,neutral\nMara Voss,a woman\n")
    path = tmp_path / "policy.yaml"
    path.write_text(STARS + TESTS)
    return path


@pytest.fixture
def run(run):
    """Run `apl-guard policy` in this process; its exit code, output and errors."""
    return partial(run, "policy")


def reloads(registry, outcome):
    return registry.get_sample_value("apl_guard_config_reloads_total", {"outcome": outcome})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rewrite, rule: rewrite-stars", "block, rule: rewrite-stars", "action rewrite, expected block"),
        ("rule: rewrite-stars", "rule: prompts", "decided by rewrite-stars, expected prompts"),
        ("prompt: a photo of a woman", "prompt: a photo of a man", "another prompt would run"),
        ("category: likeness}\n", "category: other}\n", "category likeness, expected other"),
        ("tenant: lab, route: edit}", "tenant: x, route: edit}", "the lab"),
    ],
)
def test_each_word_of_a_test_counts(path, old, new, expected):
    """The tests hold as they are; with a word changed, the test and the difference are named."""
    assert PolicyInForce(Policy.load(path)).run_tests() == ()
    tests = TESTS.replace(old, new, 1)
    assert tests != TESTS
    path.write_text(STARS + tests)

    with pytest.raises(PolicyInvalid, match=expected) as caught:
        PolicyInForce.tested(Policy.load(path))
    assert "MARA" not in str(caught.value)


def test_tests_are_about_the_rules_whatever_mode_and_rollout_are(path):
    """So that a policy can be tested before it is enforced, and switched off in a hurry."""
    for mode in ("shadow", "unsafe_off"):
        path.write_text(STARS.replace("spec:", f"spec:\n  mode: {mode}\n  rollout: {{percent: 0}}") + TESTS)
        assert PolicyInForce(Policy.load(path)).run_tests() == ()

        path.write_text(path.read_text().replace("a cat", "Mara Voss"))
        assert [failure.test for failure in PolicyInForce(Policy.load(path)).run_tests()] == ["nobody"]


@pytest.mark.parametrize(
    ("on_error", "action"), [("block", "block"), ("fallback", "block"), ("unsafe_passthrough", "allow")]
)
def test_a_test_does_not_hold_because_nobody_looked(path, monkeypatch, on_error, action):
    """The action would be the expected one. Tests of what is not looked at hold all the same."""
    tests = TESTS[TESTS.index("  - name: the lab\n") :].replace("block, category: likeness", action)
    path.write_text(STARS.replace("spec:", f"spec:\n  on_error: {on_error}") + "tests:\n" + tests)
    monkeypatch.setattr("apl_guard.detect.names.NamesIndex.find", lambda *_: 1 / 0)

    with pytest.raises(DetectorFailed, match="negative"):
        PolicyInForce.tested(Policy.load(path))
    (failure,) = PolicyInForce(Policy.load(path)).run_tests()
    assert (failure.test, failure.text) == ("negative", "names.stars did not look (ZeroDivisionError)")


def test_a_test_is_about_a_call_that_can_be_made(path):
    """Nobody can call for a tenant whose name is not printable; the line is named where the file is read."""
    path.write_text(STARS + TESTS.replace("tenant: lab", 'tenant: "l\\nab"', 1))

    with pytest.raises(PolicyInvalid, match=r"line 29: 'tests\.2\.given\.tenant': expected printable"):
        Policy.load(path)


def test_a_guard_does_not_start_with_a_policy_whose_tests_do_not_hold(shared_pipe, path):
    """It would decide as its author does not expect."""
    path.write_text(STARS + TESTS.replace("a cat", "Mara Voss"))

    with pytest.raises(PolicyInvalid, match="'nobody' does not hold"):
        Guard(shared_pipe, path)


class TestReload:
    """A changed file takes the place of the policy; a bad one does not."""

    def test_a_good_file_is_put_in_force(self, shared_pipe, path, metrics_registry):
        """And the same file again changes nothing."""
        guard = Guard(shared_pipe, path, metrics_registry=metrics_registry)
        assert guard.reload_policy() is False
        path.write_text(STARS.replace("version: 1", "version: 2") + TESTS)

        assert guard.reload_policy() is True
        assert guard.policy.version == 2
        assert [reloads(metrics_registry, o) for o in ("accepted", "unchanged", "rejected")] == [1, 1, 0]

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "\x00",
            STARS.replace("rewrite}", "rewrit}"),
            STARS + TESTS.replace("a cat", "Mara Voss"),
            STARS.replace("stars.csv", "no.csv"),
            STARS.replace("{action: allow}", "{action: anonymize, prefix: none-such}").replace(
                ", negative_prompt]", "]"
            ),
        ],
    )
    def test_a_bad_file_leaves_the_last_good_one(self, shared_pipe, path, content, metrics_registry):
        """Whatever is wrong: language, tests, lists, a missing prefix. It shows until the file is good again."""

        def is_good():
            labels = {"policy": before.name}
            return metrics_registry.get_sample_value("apl_guard_config_last_reload_successful", labels)

        guard = Guard(shared_pipe, path, metrics_registry=metrics_registry)
        before = guard.policy
        assert is_good() == 1
        path.write_text(content)

        with pytest.raises((PolicyInvalid, PrefixNotFound)):
            guard.reload_policy()
        assert guard.policy is before
        assert reloads(metrics_registry, "rejected") == 1
        assert is_good() == 0

        path.write_text(STARS + TESTS)
        assert guard.reload_policy() is False
        assert is_good() == 1
        with pytest.raises(PolicyBlocked):
            guard("a cat", negative_prompt="Mara Voss")

    def test_a_changed_list_counts_as_a_changed_policy(self, shared_pipe, path):
        """Its digest is part of the policy's."""
        guard = Guard(shared_pipe, path)
        (path.parent / "stars.csv").write_text("name,neutral\nMara Voss,a woman\nKai Lund,\n")

        assert guard.reload_policy() is True
        assert guard.check("Kai Lund").action == "rewrite"

    def test_a_policy_that_is_no_file_cannot_be_read_again(self, shared_pipe):
        """There is nothing to read."""
        guard = Guard(shared_pipe, Policy.load("unsafe_allow_all"))
        for call in (guard.reload_policy, guard.watch_policy):
            with pytest.raises(InvalidInput, match="no file"):
                call()

    def test_every_call_is_decided_by_one_policy_while_policies_change(self, shared_pipe, path):
        """Name and rules of a decision are always of the same version."""
        block = STARS.replace("version: 1", "version: 2").replace("{action: allow}", "{action: block}")
        guard = Guard(shared_pipe, path)
        seen, ended = [], threading.Event()

        def ask():
            while not ended.is_set():
                decision = guard.check("a cat")
                seen.append((decision.policy_version, decision.action.value))

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            for content in [block, STARS] * 10:
                path.write_text(content)
                guard.reload_policy()
            ended.set()
        for each in asking:
            each.result()

        assert set(seen) == {(1, "allow"), (2, "block")}


class TestCommands:
    """`apl-guard policy`."""

    def test_list_show_validate(self, run, path):
        """All built-in policies, also those whose lists are not there; the whole of one; whether files are right."""
        assert [entry["name"] for entry in json.loads(run("list", "--json")[1])] == sorted(built_in_policies())
        assert "protected" in run("show", "block_named")[1]
        shown = run("show", path, "--json")[1]
        assert Policy.parse(shown.encode()).metadata == Policy.load(path).metadata
        assert run("validate", path, "anonymize_faces")[0] == 0
        path.write_text(STARS.replace("rules", "ruls"))
        code, out, _ = run("validate", path, "anonymize_faces")
        assert code == 2
        assert "did you mean 'rules'?" in out
        assert "ok    anonymize_faces" in out

    def test_show_says_what_holds_beside_the_rules(self, run, path):
        """All that is not as usual, in letters that no terminal obeys."""
        said = "spec:\n  rollout: {percent: 10, key: tenant}\n  on_error: unsafe_passthrough\n"
        told = 'version: 1\n  description: "\\e[31mred\\u202e"\n'
        path.write_text(STARS.replace("spec:\n", said, 1).replace("version: 1\n", told, 1))

        shown = run("show", path)[1]

        assert 'rollout: {"percent": 10.0, "key": "tenant"' in shown
        assert "on_error: unsafe_passthrough" in shown
        assert "names stars: protected, 1 people in stars.csv" in shown
        assert shown.replace("\n", "").isprintable()
        assert "on_error" not in run("show", "anonymize_faces")[1]

    def test_tests(self, run, path):
        """0 where all hold; 1 where one does not, and where there is none."""
        assert run("test", path)[0] == 0
        path.write_text(STARS + TESTS.replace("a cat", "Mara Voss"))
        code, out, _ = run("test", path)
        assert (code, out.count("ok "), out.count("FAIL")) == (1, 5, 1)
        assert [entry["ok"] for entry in json.loads(run("test", path, "--json")[1])].count(False) == 1
        path.write_text(STARS)
        code, out, _ = run("test", path)
        assert (code, "no tests" in out) == (1, True)

    def test_diff(self, run, path):
        """Rules and lists go by their names, so a rule put first is no change of the others."""
        assert run("diff", path, path) == (0, "", "")
        other = path.with_name("other.yaml")
        rule = "    - id: first\n      when: {channels: [callback]}\n      then: {action: block}\n"
        other.write_text((STARS + TESTS).replace("  rules:\n", "  rules:\n" + rule).replace("version: 1", "version: 2"))
        code, out, _ = run("diff", path, other)
        assert code == 1
        assert out.splitlines() == [
            "- metadata.version: 1",
            "+ metadata.version: 2",
            '+ spec.rules.first.id: "first"',
            '+ spec.rules.first.then.action: "block"',
            '+ spec.rules.first.when.channels: ["callback"]',
        ]
        assert len(json.loads(run("diff", path, other, "--json")[1])) == 4

    def test_diff_of_people_of_one_name(self, run, path):
        """Namesakes are told apart, so that no difference is hidden behind the last of them."""
        text = STARS.replace("file: stars.csv", "people: [{name: Kim, neutral: one}, {name: Kim, neutral: two}]")
        path.write_text(text)
        other = path.with_name("other.yaml")
        other.write_text(text.replace("neutral: one", "neutral: three"))

        assert run("diff", path, other)[:2] == (
            1,
            '- spec.names.stars.people.Kim.neutral: "one"\n+ spec.names.stars.people.Kim.neutral: "three"\n',
        )

    def test_explain(self, run, path):
        """Condition by condition; what runs is shown without letters that a terminal obeys."""
        code, out, _ = run("explain", path, "\x1b[31mMara  Voss\u202e", "--channel", "latents", "--tenant", "lab")
        assert code == 0
        assert "rule rewrite-stars: applies to prompt (rewrite)" in out
        assert "    yes names.stars found in prompt" in out
        assert "rule lab: does not apply to latents" in out
        assert "    no  route (none) is one of edit" in out
        assert "latents: block, no rule applies" in out
        assert "rule refuse: none of its channels is used" in out
        assert out.replace("\n", "").isprintable()
        explained = json.loads(run("explain", path, "Mara Voss", "--json")[1])
        assert explained["decision"]["action"] == "rewrite"
        assert explained["runs"] == {"prompt": ["a woman"]}

    def test_explain_needs_a_request(self, run, path):
        """That nothing is allowed says nothing about a policy."""
        code, out, err = run("explain", path)
        assert (code, out) == (2, "")
        assert "no prompt" in err

    def test_explain_decides_as_the_guard_does(self, run, shared_pipe, path):
        """The same decision but for its id."""
        explained = json.loads(run("explain", path, "Mara Voss", "--json")[1])["decision"]
        decided = Guard(shared_pipe, path).check("Mara Voss").model_dump(mode="json")

        assert explained | {"id": ""} == decided | {"id": ""}

    @pytest.mark.parametrize("base", [[], ["--from", "anonymize_faces"], ["--from", "block_named"]])
    def test_init(self, run, tmp_path, base):
        """A file that loads; a file that is there stays."""
        target = tmp_path / "My policy!.yaml"
        assert run("init", target, *base)[0] == 0
        content = target.read_text()
        assert Policy.parse(content.encode()).rules
        if not base:
            assert run("test", target)[0] == 0
        code, _, err = run("init", target)
        assert (code, "exists" in err) == (1, True)
        assert target.read_text() == content
        assert run("init", tmp_path / "x.yaml", "--from", "nothing")[0] == 2

    def test_schema(self, run, path):
        """It takes every good policy and refuses what the reader refuses in it."""
        schema = json.loads(run("schema")[1])
        checker = jsonschema.Draft202012Validator(schema)
        checker.check_schema(schema)
        for file in [path, *built_in_policies().values()]:
            checker.validate(yaml.safe_load(file.read_text()))
        wrong = yaml.safe_load(STARS)

        def of_rule(**when):
            rule = {"id": "a", "when": {"channels": ["prompt"], **when}, "then": {"action": "block"}}
            return {"spec": wrong["spec"] | {"rules": [*wrong["spec"]["rules"], rule]}}

        checker.validate(wrong | of_rule(tenants=["x" * 200]))
        for change in (
            {"kind": "Polcy"},
            {"surprise": 1},
            {"metadata": {"name": "../x", "version": 1}},
            {"spec": wrong["spec"] | {"rules": []}},
            {"spec": wrong["spec"] | {"mode": "off"}},
            {"spec": wrong["spec"] | {"rollout": None}},
            of_rule(tenants=[""]),
            of_rule(tenants=["x" * 201]),
            of_rule(routes=None),
        ):
            with pytest.raises(jsonschema.ValidationError):
                checker.validate(wrong | change)
            with pytest.raises(PolicyInvalid):
                Policy.parse(json.dumps(wrong | change).encode())
        assert "description" in json.dumps(schema["$defs"]["Then"]["properties"]["strength"])
