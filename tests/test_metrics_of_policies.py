"""Metrics about policies: what was found under them, how far a rollout is, when a file was last good."""

import contextlib
from time import time

from policy_documents import policy

from apl_guard import Guard, PolicyBlocked
from apl_guard.metrics import Metrics

STARS = {"id": "stars", "people": [{"name": "Mara Voss"}, {"name": "Kai Lund"}]}
OFFICE = {"id": "office", "regex": "president"}


def rule(id, channels, action, **when):
    return {"id": id, "when": {"channels": channels, **when}, "then": {"action": action}}


def found(registry):
    """(rule, category, target) → how often, of every series that counts something."""
    samples = next(m.samples for m in registry.collect() if m.name == "apl_guard_findings")
    values = [(s.labels, s.value) for s in samples if s.name.endswith("_total") and s.value]
    assert {labels["policy"] for labels, _ in values} <= {"p"}
    return {(labels["rule"], labels["category"], labels["target"]): value for labels, value in values}


def test_each_finding_counts_once_under_the_rule_that_decided(shared_pipe, prefix, metrics_registry):
    """By what found it and where, over several calls, whether they were blocked or not; a clean prompt counts none."""
    rules = [
        rule("allow", ["prompt", "negative_prompt"], "allow"),
        rule("rewrite", ["prompt"], "rewrite", names=["stars"]),
        rule("refuse", ["negative_prompt"], "block", names=["stars"]),
        rule("offices", ["prompt"], "rewrite", patterns=["office"]),
    ]
    guard = Guard(
        shared_pipe,
        policy(*rules, names=[STARS], patterns=[OFFICE]),
        prefix=prefix,
        metrics_registry=metrics_registry,
    )
    for prompt, negative in (
        ("Mara Voss and Kai Lund", ""),
        (["Mara Voss", "a cat"], ["", ""]),
        ("a cat", "Kai Lund"),
        ("the president", ""),
        ("a cat", ""),
    ):
        with contextlib.suppress(PolicyBlocked):
            guard(prompt, negative_prompt=negative, num_inference_steps=1)

    assert found(metrics_registry) == {
        ("rewrite", "names", "prompt"): 3,
        ("refuse", "names", "negative_prompt"): 1,
        ("offices", "pattern", "prompt"): 1,
    }


def test_a_rollout_is_told_as_a_ratio(metrics_registry):
    """A quarter of the requests is 0.25, and all of them are 1."""
    metrics = Metrics.on(metrics_registry)
    for rollout, ratio in (({"percent": 25, "key": "request", "salt": "x"}, 0.25), (None, 1)):
        metrics.in_force(policy(rule("allow", ["prompt"], "unsafe_allow"), **({"rollout": rollout} if rollout else {})))
        assert metrics_registry.get_sample_value("apl_guard_rollout_ratio", {"policy": "p"}) == ratio


def test_the_time_of_the_last_good_policy(metrics_registry):
    """It moves when a policy comes into force or its file says the same, and stays where it was refused."""
    metrics, old = Metrics.on(metrics_registry), policy(rule("allow", ["prompt"], "unsafe_allow"))

    def last():
        return metrics_registry.get_sample_value("apl_guard_config_last_success_timestamp_seconds")

    began = time()
    metrics.in_force(old)
    first = last()
    assert began <= first <= time()
    metrics.reloaded("rejected", old)
    assert last() == first
    metrics.reloaded("unchanged", old)
    assert first < last() <= time()
