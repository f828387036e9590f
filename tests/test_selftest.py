"""Canary prompts show whether a guard acts, before the first user comes."""

import json
import time

import pytest
from typer.testing import CliRunner

from apl_guard import Guard, GuardUnavailable, InvalidInput, SelfTestFailed
from apl_guard.cli import app


def test_a_guard_that_acts_becomes_ready(guard, prefix):
    """The result names the prefix and how much it moves each text encoder."""
    assert not guard.ready

    result = guard.self_test(num_inference_steps=1)

    assert guard.ready
    assert (result.prompts, result.prefix) == (2, prefix.metadata.name)
    assert result.change["text_encoder"] > 0


def test_one_text_is_not_a_canary_for_each_of_its_letters(guard):
    """Nor does the mistake take away that the guard is ready."""
    guard.self_test(num_inference_steps=1)

    with pytest.raises(InvalidInput, match="sequence"):
        guard.self_test("a man", num_inference_steps=1)
    assert guard.ready


def test_a_guard_that_fails_gives_no_picture_until_it_passes(pipe, prefix):
    """After a failed self-test there is no image, though one passed before; a passed one opens the way again."""
    guard = Guard(pipe, prefix=prefix)
    guard.self_test(num_inference_steps=1)
    encode, pipe.text_encoder.forward = pipe.text_encoder.forward, None

    with pytest.raises(SelfTestFailed, match="canary 0 failed"):
        guard.self_test(num_inference_steps=1)
    pipe.text_encoder.forward = encode
    with pytest.raises(GuardUnavailable, match="self-test"):
        guard("a man", num_inference_steps=1)
    assert not guard.ready

    guard.self_test(num_inference_steps=1)

    guard("a man", num_inference_steps=1)


@pytest.mark.parametrize("policy", ["shadow_anonymize_faces", "unsafe_allow_all"])
def test_a_policy_that_lets_canaries_pass_is_no_success(shared_pipe, prefix, policy):
    """The pictures come, without a prefix: that is not what a self-test is to show."""
    with pytest.raises(SelfTestFailed, match="without a prefix"):
        Guard(shared_pipe, policy, prefix=prefix).self_test(num_inference_steps=1)


def test_how_it_ended_is_a_metric(pipe, prefix, metrics_registry):
    """0 or 1 for the backend, whatever earlier ones said, so that an alert fires and ends; with the time."""

    def said():
        found = {m.name.removeprefix("apl_guard_selftest_"): m.samples for m in metrics_registry.collect()}
        assert [sample.labels for sample in found["success"]] == [s.labels for s in found["timestamp_seconds"]]
        assert all(abs(time.time() - sample.value) < 60 for sample in found["timestamp_seconds"])
        return {sample.labels["prefix"]: sample.value for sample in found["success"]}

    guard = Guard(pipe, prefix=prefix, metrics_registry=metrics_registry)
    assert said() == {}
    encode, pipe.text_encoder.forward = pipe.text_encoder.forward, None
    with pytest.raises(SelfTestFailed):
        guard.self_test(num_inference_steps=1)
    assert said() == {"none": 0}
    pipe.text_encoder.forward = encode
    guard.self_test(num_inference_steps=1)
    assert said() == {"none": 1, prefix.metadata.name: 1}
    pipe.text_encoder.forward = None
    with pytest.raises(SelfTestFailed):
        guard.self_test(num_inference_steps=1)
    assert said() == {"none": 0, prefix.metadata.name: 0}


def test_without_canaries_nothing_is_shown(guard):
    """A self-test of nothing would pass."""
    with pytest.raises(SelfTestFailed, match="no canary prompts"):
        guard.self_test(prompts=[])


def test_the_command_line(tmp_path):
    """`apl-guard selftest` says what was in front; the shipped model passes with the shipped prefix."""
    result = CliRunner().invoke(app, ["selftest", "--model", "minifaces", "--audit", str(tmp_path / "audit")])

    assert result.exit_code == 0, result.output
    assert "prefix minifaces in front of 2 canaries" in result.output
    assert "text_encoder" in result.output


def test_calls_that_a_failed_self_test_refuses_are_counted_and_on_record(pipe, prefix, metrics_registry, tmp_path):
    """A service that gives no image any more must not look like one that nobody calls."""
    with Guard(pipe, prefix=prefix, audit=tmp_path / "log", metrics_registry=metrics_registry) as guard:
        pipe.text_encoder.forward = None
        with pytest.raises(SelfTestFailed, match="canary 0 failed"):
            guard.self_test(num_inference_steps=1)
        for _ in range(3):
            with guard.context(tenant="acme"), pytest.raises(SelfTestFailed, match="the last self-test failed"):
                guard("a man", num_inference_steps=1)

    value = metrics_registry.get_sample_value
    assert value("apl_guard_outcomes_total", {"result": "failed"}) == 3
    labels = {"stage": "other", "error_type": "SelfTestFailed", "disposition": "blocked"}
    assert value("apl_guard_errors_total", labels) == 3
    lines = [line for path in (tmp_path / "log" / "segments").iterdir() for line in path.read_text().splitlines()]
    found = [r for r in map(json.loads, lines) if r["event"] == "guard.refusal"]
    assert [(r["result"], r["error"], r["tenant"]) for r in found] == [("failed", "SelfTestFailed", "acme")] * 3


def test_a_repeated_self_test_leaves_the_guard_ready_while_it_runs(pipe, prefix):
    """A load balancer that asks meanwhile must not take the service away; before the first one there is nothing to
    go by."""
    guard = Guard(pipe, prefix=prefix)
    seen = []
    encode = pipe.text_encoder.forward
    pipe.text_encoder.forward = lambda *args, **kwargs: (seen.append(guard.ready), encode(*args, **kwargs))[1]

    guard.self_test(num_inference_steps=1)
    assert set(seen) == {False}

    seen.clear()
    guard.self_test(num_inference_steps=1)
    assert set(seen) == {True}
