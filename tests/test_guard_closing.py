"""What a guard has opened ends with it."""

import urllib.error
import urllib.request
from importlib.resources import files

import pytest
from guard_log import records, text_of

from apl_guard import Guard, GuardUnavailable, InvalidInput, LeakWatch, Policy, PolicyInvalid, SelfTestFailed
from apl_guard.audit import AuditLog


def test_everything_it_opened_is_closed(shared_pipe, prefix, tmp_path):
    """The log has its last record and checkpoint at once, the port is free, the policy is watched no more."""
    path = tmp_path / "policy.yaml"
    path.write_bytes((files("apl_guard.policies") / "anonymize_faces.yaml").read_bytes())
    with Guard(shared_pipe, path, prefix=prefix, audit=tmp_path / "log") as guard:
        server, watch = guard.serve_metrics(0), guard.watch_policy()
        guard("a man", num_inference_steps=1)
        url = f"http://127.0.0.1:{server.port}/metrics"
        assert urllib.request.urlopen(url, timeout=10).status == 200

    assert '"event":"audit.close"' in text_of(tmp_path / "log")
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=10)
    assert not watch._thread.is_alive()


def test_its_policy_is_in_force_no_more(metrics_registry):
    """An alert about a policy that only watches ends with the last guard that has it, and one that could not be made
    leaves none."""

    def in_force(policy):
        found = [s for m in metrics_registry.collect() for s in m.samples if s.name == "apl_guard_policy_info"]
        return [sample.value for sample in found if sample.labels["policy"] == policy]

    shadow = Policy.load("shadow_anonymize_faces")
    first, second = (Guard(lambda prompt: "an image", shadow, metrics_registry=metrics_registry) for _ in range(2))
    first.close()
    first.close()
    assert in_force(shadow.name) == [1]
    second.close()
    assert in_force(shadow.name) == [0]

    watch = LeakWatch(Nobody(), threshold=0.5)
    with pytest.raises(InvalidInput, match="leak_watch"):
        Guard(lambda prompt: "an image", shadow, metrics_registry=metrics_registry, leak_watch=watch)
    assert in_force(shadow.name) == [0]


class Nobody:
    """Sees no face."""

    name = "nobody"

    def __call__(self, pictures):
        return [[] for _ in pictures]


@pytest.mark.parametrize("audit", ["log", None])
def test_a_closed_guard_gives_no_image(shared_pipe, prefix, tmp_path, calls, audit):
    """Not for a call and not for a self-test, whether or not there is a log that could refuse the record."""
    guard = Guard(shared_pipe, prefix=prefix, audit=audit and tmp_path / audit)
    guard.close()
    guard.close()

    with pytest.raises(GuardUnavailable, match="closed"):
        guard("a man", num_inference_steps=1)
    with pytest.raises(GuardUnavailable, match="closed"):
        guard.self_test(num_inference_steps=1)
    with pytest.raises(GuardUnavailable, match="closed"):
        guard.serve_metrics(0)  # nobody would close it
    for change in (guard.reload_policy, guard.watch_policy, guard.measure_leaks):
        with pytest.raises(GuardUnavailable, match="closed"):
            change()
    assert calls == []


def test_a_closed_guard_says_so_although_its_self_test_failed(pipe, prefix):
    """No other self-test can mend it."""
    guard = Guard(pipe, prefix=prefix)
    pipe.text_encoder.forward = None
    with pytest.raises(SelfTestFailed):
        guard.self_test(num_inference_steps=1)
    guard.close()

    with pytest.raises(GuardUnavailable, match="closed"):
        guard("a man", num_inference_steps=1)


def test_a_log_has_one_list_of_witnesses(shared_pipe, prefix, tmp_path):
    """Those of a log that is handed in were named where it was made; others would be silently left out."""
    log = AuditLog(tmp_path / "audit")

    with pytest.raises(InvalidInput, match="own witnesses"):
        Guard(shared_pipe, prefix=prefix, audit=log, audit_witness=tmp_path / "witness")


def test_a_log_that_was_handed_in_stays_open(shared_pipe, prefix, tmp_path):
    """Several guards may write to it."""
    with AuditLog(tmp_path / "log") as log:
        for _ in range(2):
            with Guard(shared_pipe, prefix=prefix, audit=log) as guard:
                guard("a man", num_inference_steps=1)

    assert [record["event"] for record in records(tmp_path / "log")] == ["guard.decision", "guard.outcome"] * 2


def test_a_guard_that_cannot_be_made_leaves_no_log_open(shared_pipe, prefix, tmp_path):
    """It is closed before the error arrives, not when the garbage collector comes."""
    with pytest.raises(PolicyInvalid):
        Guard(shared_pipe, "no_such_policy", prefix=prefix, audit=tmp_path / "log")

    assert '"event":"audit.close"' in text_of(tmp_path / "log")
