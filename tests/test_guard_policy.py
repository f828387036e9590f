"""What a policy says is what the guard does: tenants, strength, named prefixes, what is unsafe."""

import json
import logging

import pytest
import torch
from policy_documents import policy

from apl_guard import Guard, GuardUnavailable, PolicyBlocked, PrefixNotFound, PrefixRegistry
from apl_guard.testing import random_prefix


def prompts(action, when=None, **then):
    return {"id": "r", "when": {"channels": ["prompt"], **(when or {})}, "then": {"action": action, **then}}


def records(folder):
    """What the guard recorded, without what the log records about itself."""
    lines = [line for path in sorted((folder / "segments").iterdir()) for line in path.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if record["event"].startswith("guard.")]


def test_a_rule_for_a_tenant_holds_for_calls_made_for_it(shared_pipe, prefix, tmp_path):
    """And the record says for whom the call was made."""
    guard = Guard(shared_pipe, policy(prompts("anonymize", {"tenants": ["acme"]})), prefix=prefix, audit=tmp_path)

    with guard.context(tenant="acme", route="generate"):
        guard("a cat", num_inference_steps=1)
    with pytest.raises(PolicyBlocked, match="no rule applies"):
        guard("a cat")

    decisions = records(tmp_path)[::2]
    assert [(d["tenant"], d["route"]) for d in decisions] == [("acme", "generate"), (None, None)]


def test_strength_is_the_number_of_vectors_in_front(shared_pipe, prefix, tmp_path, draw):
    """The picture is that of a prefix of so many vectors; the record names the whole prefix and the number."""
    guard = Guard(shared_pipe, policy(prompts("anonymize", strength=0.3)), prefix=prefix, audit=tmp_path)
    three = Guard(shared_pipe, prefix=prefix.first(3))

    drawn = draw(guard, "a cat")

    assert torch.equal(drawn, draw(three, "a cat"))
    assert not torch.equal(drawn, draw(Guard(shared_pipe, prefix=prefix), "a cat"))
    outcome = records(tmp_path)[1]
    assert outcome["prefix_digest"] == prefix.digest
    assert outcome["prefix_rows"] == {"text_encoder": [3]}


def test_a_rule_names_its_prefix(shared_pipe, prefix, tmp_path):
    """Which is looked up in the registry, whatever prefix the guard was given."""
    named = policy(prompts("anonymize", prefix="special"))
    with pytest.raises(PrefixNotFound, match="special"):
        Guard(shared_pipe, named, prefix=prefix)
    special = random_prefix(shared_pipe, n=3, seed=1, name="special")
    PrefixRegistry().register(special.save(tmp_path / "special"))

    made = Guard(shared_pipe, named, prefix=prefix).generate("a cat", num_inference_steps=1)

    assert (made.outcome.prefix, made.outcome.prefix_digest) == ("special", special.digest)


def test_what_is_unsafe_is_logged_each_time(shared_pipe, caplog):
    """With the words of the policy, and no word of the prompt."""
    guard = Guard(shared_pipe, "unsafe_allow_all")

    with caplog.at_level(logging.WARNING, "apl_guard"):
        for _ in range(2):
            guard("Mara Voss", num_inference_steps=1)

    said = [r.message for r in caplog.records if "switches protection off" in r.message]
    assert [message.count("rule 'everything': unsafe_allow prompt") for message in said] == [1, 1]
    assert "Mara" not in caplog.text


@pytest.mark.parametrize("on_error", ["block", "fallback", "unsafe_passthrough"])
def test_a_prefix_that_is_gone_means_no_picture_unless_the_policy_says_so(
    on_error, shared_pipe, prefix, tmp_path, caplog, draw, metrics_registry
):
    """And then the outcome says that nothing protected it, and why; and it is counted, so that an alert can tell."""
    entry = PrefixRegistry().register(prefix.save(tmp_path / "trained"))
    found = policy(prompts("anonymize"), on_error=on_error)
    guard = Guard(shared_pipe, found, audit=tmp_path / "audit", metrics_registry=metrics_registry)
    (entry.path / "prefix.safetensors").unlink()

    if on_error == "unsafe_passthrough":
        with caplog.at_level(logging.WARNING, "apl_guard"):
            assert torch.equal(draw(guard, "a cat"), draw(shared_pipe, "a cat"))
        assert "unsafe_passthrough (PrefixNotFound)" in caplog.text
    else:
        with pytest.raises(PrefixNotFound):
            guard("a cat")
    decision, outcome = records(tmp_path / "audit")
    assert decision["action"] == "anonymize"
    assert (outcome["effective"], outcome["result"], outcome["error"], outcome["prefix"]) == (
        ("allow", "passed", "PrefixNotFound", None)
        if on_error == "unsafe_passthrough"
        else ("anonymize", "failed", "PrefixNotFound", None)
    )
    followed = "passed_through" if on_error == "unsafe_passthrough" else "blocked"
    labels = {"stage": "find_prefix", "error_type": "PrefixNotFound", "disposition": followed}
    assert metrics_registry.get_sample_value("apl_guard_errors_total", labels) == 1


def rewriting(neutral):
    people = [{"name": "Mara Voss", "neutral": neutral}]
    return policy(
        prompts("rewrite", {"names": ["stars"]}),
        prompts("allow") | {"id": "rest"},
        names=[{"id": "stars", "people": people}],
    )


@pytest.mark.parametrize("neutral", [" ", "\u200b", ".", "Mara"])
def test_a_name_that_rewriting_makes_of_the_words_around_it_runs_nowhere(tmp_path, neutral):
    """What is put in place of the inner name leaves the outer one: no image, and an outcome that says why."""
    ran = []
    guard = Guard(ran.append, rewriting(neutral), audit=tmp_path)

    with pytest.raises(
        GuardUnavailable, match=r"^rewriting leaves somebody of names\.stars in the prompt: .*'neutral'$"
    ):
        guard("Mara Mara Voss Voss in the rain")

    assert ran == []
    assert [r["result"] for r in records(tmp_path) if r["event"] == "guard.outcome"] == ["failed"]


def test_words_between_the_halves_of_a_name_let_it_run():
    """They are no name any more."""
    ran = []

    Guard(lambda prompt: ran.append(prompt) or [prompt], rewriting("a woman"))("Mara Mara Voss Voss")

    assert ran == ["Mara a woman Voss"]


def test_what_a_pattern_finds_in_its_own_description_runs():
    """Only names are looked for once more: a pattern, or a detector of persons, may well see a description."""
    ran = []
    patterns = [{"id": "initials", "regex": r"[A-Z]\.( [A-Z][a-z]+)?", "neutral": "N. N."}]
    found = policy(prompts("rewrite", {"patterns": ["initials"]}), prompts("allow") | {"id": "rest"}, patterns=patterns)

    Guard(lambda prompt: ran.append(prompt) or [prompt], found)("M. Voss in the rain")

    assert ran == ["N. N. in the rain"]


def test_a_name_that_no_rule_replaces_stays_where_it_is(shared_pipe):
    """What was to be drawn of nobody may be named to be left out."""
    rules = [prompts("rewrite", {"names": ["stars"]}), prompts("allow") | {"id": "rest"}]
    rules.append({"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}})
    stars = {"id": "stars", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}
    guard = Guard(shared_pipe, policy(*rules, names=[stars]))

    made = guard.generate("Mara Voss in the rain", negative_prompt="Mara Voss", num_inference_steps=1)

    assert made.outcome.result == "passed"
