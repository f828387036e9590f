"""Which policy was in force when: on record, chained and sealed like every call, and provable to others."""

import json
import time

import instant
import pytest

from apl_guard import AuditUnavailable, Guard, InvalidInput, Policy, PolicyInvalid, PrefixNotFound
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.periods import periods
from apl_guard.audit.reading import read_log
from apl_guard.audit.receipt import check_receipt, prove
from apl_guard.audit.verify import Verdict, verify_log

GOOD = """\
apiVersion: apl-guard/v1
kind: Policy
metadata: {name: mine, version: VERSION, owner: trust@example.org, description: a test}
spec:
  rollout: {percent: 50}
  rules:
    - id: prompts
      when: {channels: [prompt]}
      then: {action: anonymize}
"""


def version(number):
    return GOOD.replace("VERSION", str(number))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(version(1))
    return path


@pytest.fixture
def audit(folders):
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        yield audit


def events(log, kind="policy."):
    return [found.fields for found in read_log(log) if found.fields["event"].startswith(kind)]


def test_the_start_of_a_guard_is_on_record_before_its_first_call(audit, folders, path, prefix):
    """With everything that tells policy, prefix and backend apart."""
    guard = Guard(instant.Pipe(), path, prefix=prefix, audit=audit)
    guard("a cat")

    found = events(folders[0], "")
    assert [f["event"] for f in found[1:4]] == ["policy.in_force", "guard.decision", "guard.outcome"]
    (begun,) = events(folders[0])
    assert begun["policy"] == {
        "name": "mine",
        "version": 1,
        "digest": guard.policy.digest,
        "mode": "enforce",
        "rollout_percent": 50,
        "owner": "trust@example.org",
        "description": "a test",
    }
    assert (begun["backend"], begun["carries_prefix"], begun["models"]) == ("instant:Pipe", True, {})
    assert begun["prefixes"] == [{"name": prefix.metadata.name, "digest": prefix.digest, "match": "unknown"}]
    assert found[2]["policy"]["digest"] == begun["policy"]["digest"]


def test_each_reload_is_on_record_as_it_ended(audit, folders, path, prefix):
    """A good file with what it replaces, a bad one with the type of the error, the same file not at all."""
    guard = Guard(instant.Pipe(), path, prefix=prefix, audit=audit)
    first = guard.policy.digest
    guard.reload_policy()
    path.write_text(version(2))
    guard.reload_policy()
    path.write_text("kind: Policy")
    with pytest.raises(PolicyInvalid):
        guard.reload_policy()
    path.write_text(version(3).replace("anonymize}", "anonymize, prefix: no-such}"))
    with pytest.raises(PrefixNotFound):
        guard.reload_policy()

    _, reloaded, unread, unfit = events(folders[0])
    assert reloaded["event"] == "policy.reloaded"
    assert (reloaded["before"]["version"], reloaded["before"]["digest"]) == (1, first)
    assert (reloaded["policy"]["version"], reloaded["policy"]["digest"]) == (2, guard.policy.digest)
    assert unread["event"] == unfit["event"] == "policy.rejected"
    assert (unread["error"], unread["refused"]) == ("PolicyInvalid", None)
    assert (unfit["error"], unfit["refused"]["version"]) == ("PrefixNotFound", 3)
    assert {each["policy"]["digest"] for each in (reloaded, unread, unfit)} == {guard.policy.digest}
    assert len({each["guard"] for each in events(folders[0])}) == 1


def test_a_policy_whose_change_cannot_be_recorded_does_not_come_into_force(
    audit, folders, path, prefix, monkeypatch, metrics_registry
):
    """Neither at the start nor by a reload; what is missing is named as soon as the disk has room again."""

    def full(_):
        raise OSError(28, "No space left on device")

    guard = Guard(instant.Pipe(), path, prefix=prefix, audit=audit, metrics_registry=metrics_registry)
    path.write_text(version(2))
    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync", full)
        with pytest.raises(AuditUnavailable):
            guard.reload_policy()
        with pytest.raises(AuditUnavailable):
            Guard(instant.Pipe(), path, prefix=prefix, audit=audit)

    assert guard.policy.version == 1
    assert metrics_registry.get_sample_value("apl_guard_config_reloads_total", {"outcome": "rejected"}) == 1
    assert guard.reload_policy() is True
    (gap,) = events(folders[0], "audit.gap")
    assert [event for event, _ in gap["records"]] == ["policy.reloaded", "policy.rejected", "policy.in_force"]


def test_a_watch_tries_again_until_the_change_can_be_recorded(
    audit, folders, path, prefix, monkeypatch, metrics_registry
):
    """The file was good; only the disk was full for a while. A file that is wrong is tried once."""

    def full(_):
        raise OSError(28, "No space left on device")

    def rejected():
        return metrics_registry.get_sample_value("apl_guard_config_reloads_total", {"outcome": "rejected"})

    def wait(holds):
        for _ in range(3000):
            if holds():
                return
            time.sleep(0.01)
        pytest.fail("waited in vain")

    guard = Guard(instant.Pipe(), path, prefix=prefix, audit=audit, metrics_registry=metrics_registry)
    with guard.watch_policy(seconds=0.01):
        with monkeypatch.context() as patched:
            patched.setattr(disk, "sync", full)
            path.write_text(version(2))
            wait(lambda: rejected() >= 2)
            assert guard.policy.version == 1
        wait(lambda: guard.policy.version == 2)
        before = rejected()
        (path.parent / "new").write_text("nonsense")
        (path.parent / "new").replace(path)  # at once, so that no half of it is seen
        wait(lambda: rejected() > before)
        time.sleep(0.1)
        assert rejected() == before + 1


def test_they_are_sealed_and_verified_like_calls(folders, path, prefix, run):
    """A digest that is changed afterwards is tampering, and the log names the record."""
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        digest = Guard(instant.Pipe(), path, prefix=prefix, audit=audit).policy.digest
    assert verify_log(log, [witness]).verdict == Verdict.VALID
    (segment,) = (log / "segments").iterdir()
    segment.write_bytes(segment.read_bytes().replace(digest.encode(), digest[::-1].encode()))

    report = verify_log(log, [witness])
    assert report.verdict == Verdict.TAMPERED
    code, out, _ = run("verify", log, "--witness", witness)
    assert (code, "record 1 " in out) == (1, True)


def test_an_officer_sees_and_proves_what_was_in_force(folders, path, prefix, run):
    """From start to reload to end; a receipt for one guard, checked with the public key alone."""
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        guard = Guard(instant.Pipe(), path, prefix=prefix, audit=audit)
        guard("a cat")
        path.write_text(version(2))
        guard.reload_policy()
        guard("a cat")
        other = Guard(instant.Pipe(), "unsafe_allow_all", prefix=prefix, audit=audit)
        assert [p.end for p in periods(log)] == ["replaced", "open", "open"]
    first, second, third = periods(log)
    calls = events(log, "guard.decision")

    assert [p.policy["version"] for p in (first, second)] == [1, 2]
    assert (first.end, second.end, third.end) == ("replaced", "closed", "closed")
    assert first.until == second.since
    assert third.policy["name"] == other.policy.name
    for call in calls:
        (under,) = [p for p in (first, second) if p.covers(call["timestamp"])]
        assert under.policy["digest"] == call["policy"]["digest"]

    assert run("policies", log)[1].count("\n") == 3
    at = run("policies", log, "--at", calls[0]["timestamp"], "--json")[1]
    assert [json.loads(line)["policy"]["version"] for line in at.splitlines()] == [1]
    assert run("policies", log, "--at", "2020-01-01")[1] == "nothing found\n"
    assert "mine version 2 enforce" in run("query", log, "--event", "policy.reloaded")[1]
    assert "instead of mine version 1 enforce" in run("tail", log)[1]
    assert "policy.reloaded" in run("stats", log)[1]

    receipt = json.dumps(prove(log, first.guard)).encode()
    proved = check_receipt(receipt, json.loads((log / "log.json").read_text())["root"])
    assert [record.fields["event"] for record in proved] == ["policy.in_force", "policy.reloaded"]
    with pytest.raises(InvalidInput):
        check_receipt(receipt.replace(b"mine", b"mind"), json.loads((log / "log.json").read_text())["root"])


def test_the_end_of_a_process_that_died_is_not_made_up(tmp_path, path, prefix):
    """Nobody knows until when its policy was in force."""
    log = AuditLog(tmp_path / "log")
    Guard(instant.Pipe(), path, prefix=prefix, audit=log)
    log._durable.leave()  # as after a crash: the files are let go, nothing more is written
    with AuditLog(tmp_path / "log"):
        (period,) = periods(tmp_path / "log")

    assert (period.until, period.end) == (None, "died")


def test_platforms_that_log_themselves_get_them_too(prefix, path):
    """Through their structlog processors, in order."""
    import structlog
    from structlog.testing import LogCapture

    captured = LogCapture()
    logger = structlog.wrap_logger(None, processors=[captured], wrapper_class=structlog.BoundLogger)
    guard = Guard(instant.Pipe(), path, prefix=prefix, audit=AuditLog(logger=logger))
    path.write_text(version(2))
    guard.reload_policy()

    assert [entry["event"] for entry in captured.entries] == ["policy.in_force", "policy.reloaded"]
    assert captured.entries[1]["policy"]["digest"] == Policy.load(path).digest
