"""What is said of released images: that protection was applied, cannot be proven, is missing, or was not asked for.

Record, metric, statistics, table and statement of reasons say the same, and never more than is so.
"""

import csv
import io
import json
from collections import Counter

import instant
import pytest
from policy_documents import document
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from apl_guard import Guard, GuardUnavailable, InvalidInput, Policy
from apl_guard.audit import AuditLog
from apl_guard.audit.export import Platform, statements
from apl_guard.cli import app
from apl_guard.policy import Action

PREFIX = {"id": "prefix", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}
BARE = {"id": "bare", "when": {"channels": ["prompt"]}, "then": {"action": "unsafe_allow"}}
CALLBACK = {"id": "code", "when": {"channels": ["callback"]}, "then": {"action": "unsafe_allow"}}
REWRITE = {"id": "names", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "rewrite"}}
GATED = {"id": "stars", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "anonymize"}}
ALLOW = {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "allow"}}
NOBODY_IN = {"percent": 0, "key": "request"}

# What is asked → rules, the rest of the spec, the arguments of the call, what is said of the image.
CASES = {
    "prefix": ([PREFIX], {}, {}, "applied"),
    "prefix, code permitted and not used": ([PREFIX, CALLBACK], {}, {}, "applied"),
    "prefix, code of the caller": ([PREFIX, CALLBACK], {}, {"callback": print}, "unproven"),
    "names rewritten": ([ALLOW, REWRITE], {}, {}, "unproven"),
    "shadow": ([PREFIX], {"mode": "shadow"}, {}, "missing"),
    "outside of the rollout": ([PREFIX], {"rollout": NOBODY_IN}, {}, "missing"),
    "switched off": ([PREFIX], {"mode": "unsafe_off"}, {}, "missing"),
    "nothing protects": ([BARE], {}, {}, "missing"),
    "nobody listed is named": ([ALLOW, GATED], {}, {"prompt": "a cat"}, "not_asked"),
    "nobody is named, code of the caller": (
        [ALLOW, GATED, CALLBACK],
        {},
        {"prompt": "a cat", "callback": 1},
        "missing",
    ),
    "nobody is named, in shadow": ([ALLOW, GATED], {"mode": "shadow"}, {"prompt": "a cat"}, "not_asked"),
}


def policy(rules, **spec):
    if any("names" in rule["when"] for rule in rules):
        spec["names"] = [{"id": "stars", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}]
    return Policy.model_validate(document(*rules, **spec))


def ask(*arguments):
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def counted(registry):
    """Protection → how many images were counted so."""
    images = next(metric for metric in registry.collect() if metric.name == "apl_guard_images")
    return {s.labels["protection"]: s.value for s in images.samples if s.name.endswith("_total")}


def said(log):
    """What statistics, index and table say of the released images of a log."""
    rows = list(csv.DictReader(io.StringIO(ask("export", log, "--csv"))))
    answer = ask("query", log, "--where", "result=passed", "--group-by", "protection", "--json").splitlines()
    grouped = [line for line in answer if line.startswith("{")]  # older versions of click mix errors into it
    return (
        json.loads(ask("stats", log, "--json"))["protection"],
        {group["protection"]: group["count"] for group in map(json.loads, grouped)},
        dict(Counter(row["protection"] for row in rows if row["result"] == "passed")),
    )


@pytest.mark.parametrize("case", CASES)
def test_every_place_says_the_same_of_an_image(case, prefix, folders):
    """Whatever a policy asks for, permits, or does not do."""
    rules, spec, arguments, protection = CASES[case]
    log, registry = folders[0], CollectorRegistry()
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), policy(rules, **spec), prefix=prefix, audit=audit, metrics_registry=registry)
        arguments = dict(arguments)
        made = guard.generate(arguments.pop("prompt", "a photo of Mara Voss"), **arguments)

    assert made.outcome.protection == protection
    assert counted(registry) == {protection: 1}
    assert said(log) == ({protection: 1}, {protection: 1}, {protection: 1})


def test_a_text_encoder_without_prefix_is_no_proof(prefix, folders, monkeypatch):
    """Where the policy says that the prefix of one slot suffices for a pipe that has two."""
    monkeypatch.setattr(instant.Adapter, "slots", ("text_encoder", "text_encoder_2"))
    guard = Guard(instant.Pipe(), policy([PREFIX], prefix={"slots": ["text_encoder"]}), prefix=prefix)

    outcome = guard.generate("a cat").outcome

    assert outcome.slots_without_prefix == ("text_encoder_2",)
    assert outcome.protection == "unproven"


def test_a_prefix_that_is_gone_is_missing_protection(prefix, folders, monkeypatch):
    """Where the policy lets such calls pass: in the table, the action that was carried out is not the one decided."""
    log, registry = folders[0], CollectorRegistry()

    def gone(*_):
        raise GuardUnavailable("gone")

    with AuditLog(log) as audit:
        lenient = policy([PREFIX], on_error="unsafe_passthrough")
        guard = Guard(instant.Pipe(), lenient, prefix=prefix, audit=audit, metrics_registry=registry)
        monkeypatch.setattr(guard._parts.finder, "find", gone)
        guard("a cat")

    assert counted(registry) == {"missing": 1}
    assert said(log) == ({"missing": 1},) * 3
    (row,) = csv.DictReader(io.StringIO(ask("export", log, "--csv")))
    assert (row["action"], row["effective_action"], row["error"]) == ("anonymize", "allow", "GuardUnavailable")


def test_where_no_image_is_released_nothing_is_said_of_one(prefix, folders):
    """Blocked, failed or invalid: protection is neither applied nor missing."""
    log, registry = folders[0], CollectorRegistry()
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit, metrics_registry=registry)
        for wrong, expected in (("break", RuntimeError), (7, InvalidInput)):
            with pytest.raises(expected):
                guard(wrong)

    assert counted(registry) == {}
    assert said(log) == ({}, {}, {})


ROW = {"decision_id": "d", "decided": "2026-11-24T09:15:54Z", "policy": "p", "policy_version": 1, "rules": "prefix"}


@pytest.mark.parametrize(
    ("call", "action", "claim"),
    [
        ({"effective_action": "block", "result": "blocked"}, "block", "the request was not carried out"),
        ({"effective_action": "anonymize", "result": "withheld"}, "block", "the images were not released"),
        ({"effective_action": "anonymize", "result": "passed", "protection": "applied"}, "anonymize", "with a prefix"),
        ({"effective_action": "anonymize", "result": "passed", "protection": "unproven"}, "anonymize", "not prove"),
        ({"effective_action": "anonymize", "result": "passed"}, "anonymize", "not prove"),
        ({"effective_action": "rewrite", "result": "passed", "protection": "unproven"}, "rewrite", "not prove"),
        ({"effective_action": "anonymize", "result": "passed", "protection": "missing"}, None, None),
        ({"effective_action": "allow", "result": "passed", "protection": "not_asked"}, None, None),
        ({"effective_action": "anonymize", "result": "failed"}, None, None),
        ({"effective_action": "anonymize", "result": "backend_error"}, None, None),
        ({"effective_action": "anonymize", "result": "unknown"}, None, None),
    ],
)
def test_a_statement_of_reasons_claims_no_more_than_the_log_shows(call, action, claim):
    """No image where there is none, no measure where none was taken, no proof where there is none."""
    every = [each.value for each in Action]
    found = list(statements(iter([ROW | call]), Platform(["DE"]), every))

    assert len(found) == (action is not None)
    for statement in found:
        text = statement["incompatible_content_explanation"]
        assert claim in text
        assert ("not prove" in text) == (claim == "not prove")
        assert (statement["decision_visibility"] == ["DECISION_VISIBILITY_CONTENT_DISABLED"]) == (action == "block")
        assert list(statements(iter([ROW | call]), Platform(["DE"]), [action])) == found
        assert not list(statements(iter([ROW | call]), Platform(["DE"]), [each for each in every if each != action]))
