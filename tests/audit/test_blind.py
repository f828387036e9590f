"""A detector that cannot look, under each `on_error`: what caller, log, exports and metrics say of it."""

import csv
import io
import json
import sys
from pathlib import Path

import instant
import pytest
from logs import records
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from apl_guard import DetectorFailed, Guard, GuardUnavailable, Policy, PolicyBlocked
from apl_guard.audit import AuditLog
from apl_guard.cli import app
from apl_guard.detect.token_reader import TokenReader

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the module that the tests there share

from detectors import save_detector

PROMPTS = {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "allow"}}
PERSONS = {"id": "persons", "when": {"channels": ["prompt"], "entities": ["person"]}, "then": {"action": "anonymize"}}
OF_ACME = PERSONS | {"when": PERSONS["when"] | {"tenants": ["acme"]}}
OFFICE = {"id": "edits", "when": {"channels": ["prompt"], "routes": ["edit"]}, "then": {"action": "block"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("ner"))


@pytest.fixture
def make(model, prefix, folders, monkeypatch):
    """A guard whose detector runs out of memory at each look, and the registry that it counts on."""

    def out_of_memory(*_):
        raise MemoryError

    def call(*rules, **spec):
        spec = {"person": {"model": str(model), "milliseconds": 60_000}, "rules": [PROMPTS, *rules], **spec}
        metadata = {"name": "p", "version": 1}
        policy = Policy.model_validate(
            {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": metadata, "spec": spec}
        )
        registry = CollectorRegistry()
        audit = AuditLog(folders[0])
        opened.append(audit)
        guard = Guard(instant.Pipe(), policy, prefix=prefix, audit=audit, metrics_registry=registry)
        monkeypatch.setattr(TokenReader, "_scores", out_of_memory)
        return guard, registry

    opened = []
    yield call
    for audit in opened:
        audit.close()


def metric(registry, name, *labels):
    found = next(each for each in registry.collect() if each.name == f"apl_guard_{name}")
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in found.samples
        if sample.name.endswith("_total") and sample.value
    }


def errors(registry):
    return metric(registry, "errors", "stage", "error_type", "disposition")


def ask(*arguments):
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_who_cannot_look_has_not_judged(make, folders):
    """With `on_error: block` the guard has failed: no error of the policy, no statement that the content was wrong."""
    guard, registry = make(PERSONS)

    with pytest.raises(DetectorFailed, match=r"entity.person \(MemoryError\) could not look") as caught:
        guard("a photo of Mara Voss")

    assert isinstance(caught.value, GuardUnavailable)
    assert "Mara" not in str(caught.value)
    (outcome,) = [r for r in records(folders[0]) if r["event"] == "guard.outcome"]
    assert (outcome["result"], outcome["error"], outcome["images"]) == ("failed", "DetectorFailed", 0)
    assert metric(registry, "outcomes", "result") == {("failed",): 1}
    assert errors(registry) == {("detect", "MemoryError", "blocked"): 1}
    assert ask("export", folders[0], "--dsa", "--territory", "EU") == ""
    (row,) = csv.DictReader(io.StringIO(ask("export", folders[0], "--csv")))
    assert (row["action"], row["result"]) == ("block", "failed")
    assert json.loads(ask("stats", folders[0], "--json"))["results"] == {"failed": 1}


def test_what_the_policy_blocks_anyway_is_blocked_by_it(make, folders):
    """Whatever the detector would have said."""
    guard, registry = make(PERSONS, OFFICE)

    with guard.context(route="edit"), pytest.raises(PolicyBlocked):
        guard("a cat")
    with pytest.raises(PolicyBlocked):
        guard("a cat", no_such=1)

    assert metric(registry, "outcomes", "result") == {("blocked",): 2}
    assert errors(registry) == {("detect", "MemoryError", "blocked"): 2}
    # Nobody looked at the second, which was blocked for an argument that nobody knows.
    assert len(ask("export", folders[0], "--dsa", "--territory", "EU").splitlines()) == 1


@pytest.mark.parametrize(
    ("rules", "spec", "disposition"),
    [
        ([PERSONS], {"on_error": "fallback"}, "fallback"),
        ([PERSONS], {"on_error": "unsafe_passthrough"}, "passed_through"),
        ([PERSONS], {"mode": "shadow"}, "audit"),
        ([PERSONS], {"mode": "shadow", "on_error": "unsafe_passthrough"}, "audit"),
        ([PERSONS], {"rollout": {"percent": 0, "key": "request", "salt": "a"}}, "audit"),
        ([OF_ACME], {}, "audit"),
        ([OF_ACME], {"on_error": "unsafe_passthrough"}, "audit"),
        ([PERSONS, OFFICE], {"on_error": "unsafe_passthrough"}, "passed_through"),
    ],
)
def test_an_error_is_counted_by_what_followed(make, rules, spec, disposition):
    """Where nothing is carried out, or no rule that applies asked, nothing followed: no alert of unprotected images."""
    guard, registry = make(*rules, **spec)

    guard("a photo of Mara Voss")

    assert errors(registry) == {("detect", "MemoryError", disposition): 1}


def test_what_passes_unlooked_and_is_blocked_by_another_rule_is_no_unprotected_image(make):
    """The alert about unprotected images goes by this."""
    guard, registry = make(PERSONS, OFFICE, on_error="unsafe_passthrough")

    with guard.context(route="edit"), pytest.raises(PolicyBlocked):
        guard("a cat")

    assert errors(registry) == {("detect", "MemoryError", "blocked"): 1}


def test_statistics_and_metrics_count_the_same_results(make, folders):
    """Calls whose arguments could not be read among them, and images as images."""
    guard, registry = make(OF_ACME)
    guard("a cat")
    for wrong in (7, "break"):
        with pytest.raises(Exception, match=r"prompt|broke"):
            guard(wrong)
    with pytest.raises(PolicyBlocked):
        guard("a cat", no_such=1)

    counted = {result: count for (result,), count in metric(registry, "outcomes", "result").items()}
    assert counted == {"passed": 1, "invalid": 1, "backend_error": 1, "blocked": 1}
    found = json.loads(ask("stats", folders[0], "--json"))
    assert found["results"] == counted
    assert found["images"] == {"not_asked": 1}
