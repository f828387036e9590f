"""Metrics: each call counts once and under the right name, and no caller can make a series."""

import contextlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from apl_guard import Guard, GuardUnavailable, MetricsUnavailable, Policy, PolicyBlocked
from apl_guard.backend import Generation
from apl_guard.metrics import RESULTS, Metrics, Stage
from apl_guard.metrics.labels import ERROR_TYPES, OTHER, Known, error_type

ROOT = Path(__file__).parents[1]
OWN_BUCKETS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]
BACKEND_BUCKETS = [
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)
]
BACKEND = "diffusers:StableDiffusionPipeline"

# The names and labels that dashboards and alerts of users rely on, spelt out.
NAMES = {
    "apl_guard_requests_total": {"policy", "backend", "verdict", "action"},
    "apl_guard_outcomes_total": {"result"},
    "apl_guard_images_total": {"policy", "backend", "action", "protection"},
    "apl_guard_findings_total": {"policy", "rule", "category", "target"},
    "apl_guard_errors_total": {"stage", "error_type", "disposition"},
    "apl_guard_checked_pictures_total": {"seen"},
    "apl_guard_leak_samples_total": {"seen"},
    "apl_guard_tenant_outcomes_total": {"tenant", "result"},
    "apl_guard_stage_duration_seconds": {"stage", "backend"},
    "apl_guard_overhead_seconds": {"backend", "mode"},
    "apl_guard_backend_duration_seconds": {"backend", "outcome"},
    "apl_guard_in_progress_requests": {"backend"},
    "apl_guard_policy_info": {"policy", "version", "digest", "mode"},
    "apl_guard_prefix_info": {"prefix", "digest", "vectors"},
    "apl_guard_rollout_ratio": {"policy"},
    "apl_guard_audit_events_total": {"sink", "outcome"},
    "apl_guard_config_reloads_total": {"outcome"},
    "apl_guard_config_last_reload_successful": {"policy"},
    "apl_guard_config_last_success_timestamp_seconds": set(),
    "apl_guard_selftest_success": {"backend", "prefix"},
    "apl_guard_selftest_timestamp_seconds": {"backend", "prefix"},
}


def samples(registry):
    """(name, labels) → value, of everything but when a series was made."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def total(registry, name, **labels):
    """The sum over all series that have these labels."""
    wanted = labels.items()
    return sum(
        value for (found, has), value in samples(registry).items() if found == name and wanted <= dict(has).items()
    )


def policy(mode="enforce", *, rollout=None, channels=("prompt",), **then):
    rule = {"id": "first", "when": {"channels": list(channels)}, "then": {"action": "anonymize", **then}}
    spec = {"mode": mode, "rules": [rule]} | ({"rollout": rollout} if rollout else {})
    return Policy.model_validate(
        {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": f"in_{mode}", "version": 1}, "spec": spec}
    )


def test_names_labels_and_buckets_are_those_promised(guard, metrics_registry):
    """Raw, as Prometheus sees them; nothing is missing and nothing is there besides."""
    guard("a cat", num_inference_steps=1)
    families = vars(Metrics.on(metrics_registry)._families)
    found = {
        value._name + ("_total" if value._type == "counter" else ""): set(value._labelnames)
        for value in families.values()
        if hasattr(value, "_labelnames")
    }
    assert found == NAMES
    text = generate_latest(metrics_registry).decode()
    for name, buckets in (
        ("overhead", OWN_BUCKETS),
        ("stage_duration", OWN_BUCKETS),
        ("backend_duration", BACKEND_BUCKETS),
    ):
        edges = dict.fromkeys(re.findall(rf'apl_guard_{name}_seconds_bucket{{.*le="([\d.]+)"', text))
        assert list(map(float, edges)) == buckets


def test_every_metric_is_explained(metrics_registry):
    """The page has a row for each, with all of its labels, and none for one that is not there."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(apl_guard_[a-z_]+)` \| \w+ \|([^|]*)\|", page, re.MULTILINE))
    assert {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows.items()} == NAMES


def test_the_ways_a_call_can_end_never_look_alike(shared_pipe, prefix, tmp_path, metrics_registry, monkeypatch):
    """Passed, blocked, invalid, failed and backend_error each move one counter, and no other one of them."""
    guard = Guard(shared_pipe, prefix=prefix, metrics_registry=metrics_registry)

    def fail(*_, **__):
        raise GuardUnavailable("not now")

    calls = {
        "passed": lambda: guard("a cat", num_inference_steps=1),
        "blocked": lambda: guard("a cat", latents=torch.zeros(1, 4, 16, 16)),
        "invalid": lambda: guard(7),
        "backend_error": lambda: guard("a cat", height=33, width=33),
        "failed": lambda: guard("a cat"),
    }
    for result, call in calls.items():
        if result == "failed":
            monkeypatch.setattr(guard._parts.finder, "find", fail)
        before = {each: total(metrics_registry, "apl_guard_outcomes_total", result=each) for each in RESULTS}
        try:
            call()
        except Exception:
            assert result != "passed"
        after = {each: total(metrics_registry, "apl_guard_outcomes_total", result=each) for each in RESULTS}
        assert after == before | {result: before[result] + 1}

    def errors(**labels):
        return total(metrics_registry, "apl_guard_errors_total", **labels)

    assert errors() == 2  # neither what a policy blocks nor what a caller got wrong is an error of the service
    assert errors(stage="find_prefix", error_type="GuardUnavailable", disposition="blocked") == 1
    assert errors(stage="generate", error_type="ValueError", disposition="blocked") == 1
    assert total(metrics_registry, "apl_guard_requests_total") == 4
    assert total(metrics_registry, "apl_guard_requests_total", verdict="deny", action="block") == 1
    assert total(metrics_registry, "apl_guard_requests_total", verdict="modify", action="modify") == 3
    assert total(metrics_registry, "apl_guard_images_total") == 1
    assert total(metrics_registry, "apl_guard_in_progress_requests") == 0


def test_records_attempted_are_decisions_and_outcomes(guard, metrics_registry, tmp_path):
    """The sum with which calls, records and metrics are held against each other."""
    guard("a cat", num_inference_steps=1)
    with pytest.raises(PolicyBlocked):
        guard("a cat", latents=torch.zeros(1))
    with pytest.raises(TypeError):
        guard("a cat", prompt="a dog")
    text = "".join(path.read_text() for path in (tmp_path / "audit" / "segments").iterdir())
    lines = [json.loads(line) for line in text.splitlines()]
    written = [line for line in lines if line["event"].startswith("guard.")]
    assert total(metrics_registry, "apl_guard_audit_events_total", sink="log", outcome="written") == len(written)
    decisions = total(metrics_registry, "apl_guard_requests_total")
    assert len(written) == decisions + total(metrics_registry, "apl_guard_outcomes_total")


def test_an_unwritten_record_is_counted(shared_pipe, prefix, metrics_registry):
    """By the place it did not reach, and as an error of the stage that wrote it."""

    def broken(*_):
        raise RuntimeError("sink is down")

    guard = Guard(shared_pipe, prefix=prefix, metrics_registry=metrics_registry)
    structlog.configure(processors=[broken])
    try:
        with pytest.raises(GuardUnavailable):
            guard("a cat")
    finally:
        structlog.reset_defaults()
    assert total(metrics_registry, "apl_guard_audit_events_total", sink="platform", outcome="failed") == 1
    assert (
        total(metrics_registry, "apl_guard_errors_total", stage="record_decision", error_type="AuditUnavailable") == 1
    )
    assert total(metrics_registry, "apl_guard_requests_total") == 0


@pytest.mark.parametrize(
    ("mode", "rollout", "action", "protection"),
    [
        ("enforce", None, "modify", "applied"),
        ("shadow", None, "audit", "missing"),
        ("enforce", {"percent": 0, "key": "request", "salt": "x"}, "audit", "missing"),
    ],
)
def test_images_count_by_what_was_done_for_them(
    shared_pipe, prefix, metrics_registry, mode, rollout, action, protection
):
    """What was decided and not done is not counted as done."""
    guard = Guard(shared_pipe, policy(mode, rollout=rollout), prefix=prefix, metrics_registry=metrics_registry)
    guard(["a cat", "a dog"], num_inference_steps=1)
    found = {k: v for k, v in samples(metrics_registry).items() if k[0] == "apl_guard_images_total"}
    labels = {"policy": f"in_{mode}", "backend": BACKEND, "action": action, "protection": protection}
    assert found == {("apl_guard_images_total", tuple(sorted(labels.items()))): 2}
    assert total(metrics_registry, "apl_guard_rollout_ratio", policy=f"in_{mode}") == (0 if rollout else 1)
    assert total(metrics_registry, "apl_guard_policy_info", mode=mode) == 1


def test_stages_add_up_to_the_overhead_and_leave_the_backend_out(guard, metrics_registry):
    """Each stage is timed once a call; together they are no more than the guard's time, which holds no generation."""

    def spent():
        return {stage: total(metrics_registry, "apl_guard_stage_duration_seconds_sum", stage=stage) for stage in Stage}

    guard("a cat", num_inference_steps=1)
    warm, overhead = spent(), total(metrics_registry, "apl_guard_overhead_seconds_sum")
    made = guard.generate("a cat", num_inference_steps=20)
    stages = {stage: seconds - warm[stage] for stage, seconds in spent().items()}
    overhead = total(metrics_registry, "apl_guard_overhead_seconds_sum") - overhead
    for stage in set(Stage) - {Stage.CHECK_OUTPUT}:  # there is no output check here
        assert total(metrics_registry, "apl_guard_stage_duration_seconds_count", stage=stage) == 2
        assert stages[stage] > 0
    assert sum(stages.values()) <= overhead < made.outcome.generation_ms / 1000
    assert total(metrics_registry, "apl_guard_backend_duration_seconds_count", outcome="passed") == 2


def test_what_an_adapter_does_around_the_pipe_is_the_guards_own_time(metrics_registry):
    """It is the stage `inject`, and not the backend's."""
    metrics = Metrics.on(metrics_registry)
    metrics.introduce("instant:Pipe", "log")
    with metrics.watch("instant:Pipe") as watch:
        with watch.generating():
            time.sleep(0.02)
        whole = watch.generation_seconds
        watch.generated(Generation("an image", 1, seconds=0.005))
        watch.ended("passed", policy())
    assert total(metrics_registry, "apl_guard_stage_duration_seconds_sum", stage="inject") == pytest.approx(
        whole - 0.005
    )
    assert total(metrics_registry, "apl_guard_backend_duration_seconds_sum") == 0.005
    assert total(metrics_registry, "apl_guard_overhead_seconds_sum") > 0.01


def test_random_tenants_make_no_series(shared_pipe, prefix, metrics_registry):
    """A hundred thousand of them count as `other`; those that were named count by name."""
    guard = Guard(shared_pipe, prefix=prefix, metrics_registry=metrics_registry, metrics_tenants=["acme", "umbrella"])
    metrics = Metrics.on(metrics_registry)
    for tenant in ("acme", None, "stranger"):
        with guard.context(tenant=tenant):
            guard("a cat", num_inference_steps=1)
    before = len(samples(metrics_registry))
    for number in range(100_000):
        metrics.ended("passed", f"tenant {number}")
    assert len(samples(metrics_registry)) == before
    by_name = {
        tenant: total(metrics_registry, "apl_guard_tenant_outcomes_total", tenant=tenant) for tenant in ("acme", "none")
    }
    assert by_name == {"acme": 1, "none": 1}
    assert total(metrics_registry, "apl_guard_tenant_outcomes_total", tenant="other") == 100_001


def test_tenants_are_not_counted_unless_asked_for(guard, metrics_registry):
    """There is no series for them."""
    with guard.context(tenant="acme"):
        guard("a cat", num_inference_steps=1)
    assert "tenant=" not in generate_latest(metrics_registry).decode()


@given(st.lists(st.text(), max_size=200))
def test_no_value_from_outside_becomes_known(values):
    """Whatever is asked for, a label has the values that were named, and two more."""
    known = Known()
    known.add("a")
    known.add("b")
    assert {known(value) for value in values} <= {"a", "b", OTHER}


@given(st.lists(st.text(), max_size=200))
def test_what_is_named_is_bounded_too(values):
    """A policy that is edited every minute does not fill the memory of Prometheus."""
    known = Known(most=8)
    assert len({known.add(value) for value in values}) <= 9


def test_errors_count_by_a_closed_set_of_types():
    """Classes of other packages count as what they are derived from."""

    class OddError(ConnectionResetError):
        pass

    class MaraVossError(Exception):
        pass

    assert error_type(OddError()) == "ConnectionError"
    assert error_type(MaraVossError()) == OTHER
    assert error_type(torch.OutOfMemoryError()) == "RuntimeError"
    assert [error_type(name) for name in ("MaraVossError", "print", "ConnectionResetError", "DetectorFailed")] == [
        *(OTHER, OTHER),
        *("ConnectionError", "DetectorFailed"),
    ]
    assert len(ERROR_TYPES) < 40


def test_a_changed_policy_takes_the_place_of_the_old_one(metrics_registry):
    """One is in force; a reload that failed leaves it there and counts."""
    metrics = Metrics.on(metrics_registry)
    old, new = policy("shadow"), policy("enforce")
    metrics.in_force(old)
    metrics.in_force(new, instead_of=old)
    metrics.reloaded("accepted", new)
    metrics.reloaded("rejected", new)
    assert total(metrics_registry, "apl_guard_policy_info", mode="shadow") == 0
    assert total(metrics_registry, "apl_guard_policy_info", mode="enforce", digest=new.digest) == 1
    assert total(metrics_registry, "apl_guard_config_reloads_total", outcome="rejected") == 1
    assert total(metrics_registry, "apl_guard_config_last_reload_successful", policy=new.name) == 0
    metrics.in_force(old, instead_of=new)  # of another name
    assert total(metrics_registry, "apl_guard_config_last_reload_successful", policy=new.name) == 1


def test_a_policy_that_another_guard_still_uses_stays_in_force(metrics_registry):
    """Guards on one registry are counted."""
    metrics = Metrics.on(metrics_registry)
    old = policy("shadow")
    metrics.in_force(old)
    metrics.in_force(old)
    metrics.in_force(policy("enforce"), instead_of=old)
    assert total(metrics_registry, "apl_guard_policy_info", mode="shadow") == 1


@pytest.mark.parametrize("port", ["taken", 70_000, 1])
def test_a_port_that_cannot_be_had_is_a_typed_error(guard, port):
    """It says which one, and what to do."""
    if port == 1 and os.geteuid() == 0:
        pytest.skip("root may use every port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1] if port == "taken" else port
        with pytest.raises(MetricsUnavailable, match=rf"port {number}.*choose another port"):
            guard.serve_metrics(number)


def test_a_connection_that_asks_for_nothing_is_closed(guard, monkeypatch):
    """Each would keep a thread for as long as it likes."""
    monkeypatch.setattr(sys.modules["apl_guard.metrics.serve"], "_IDLE_SECONDS", 0.2)
    with (
        contextlib.closing(guard.serve_metrics(0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle,
    ):
        idle.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert idle.recv(1) == b""


def test_a_full_disk_under_the_metrics_stops_no_call(guard, metrics_registry, monkeypatch, caplog):
    """The image is handed out as the record says; the log says that metrics are incomplete."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prometheus_client.values.MutexValue.inc", full)
    assert guard.generate("a cat", num_inference_steps=1).outcome.result == "passed"
    assert "metrics are incomplete: No space left on device" in caplog.text
