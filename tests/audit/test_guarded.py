"""The guard and its log together: no image without its records, and no record too many or too few."""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import instant
import pytest
from logs import TORTURE, call, counted, records, wait_for
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from apl_guard import AuditUnavailable, Guard, GuardUnavailable, InvalidInput, Policy, PolicyBlocked
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.subjects import SubjectKeys
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.cli import app


def test_calls_records_and_metrics_agree_exactly_after_a_soak_with_faults(prefix, folders, monkeypatch):
    """Threads call while the disk fails, prompts are wrong, the policy blocks and the backend breaks.

    Each call is in the log as two records, as a refusal, or by its id in the record of a gap. Nothing else is.
    """
    log, witness = folders
    chance = random.Random(3)
    real = disk.sync

    def sync(handle):
        if chance.random() < 0.25:
            raise OSError(5, "Input/output error")
        real(handle)

    registry = CollectorRegistry()
    pipe = instant.Pipe()
    guard = Guard(pipe, prefix=prefix, audit=log, audit_witness=witness, metrics_registry=registry)
    monkeypatch.setattr(disk, "sync", sync)
    seen: Counter[str] = Counter()
    lock = threading.Lock()
    each = 5000 if TORTURE else 150

    def work(number):
        mine = random.Random(number)
        for _ in range(each):
            arguments, options = mine.choice(
                [(("a cat",), {}), (("break",), {}), ((7,), {}), ((), {}), (("a cat",), {"no_such": 1})]
            )
            try:
                guard(*arguments, **options)
                how = "passed"
            except Exception as error:
                how = type(error).__name__
            with lock:
                seen[how] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    monkeypatch.setattr(disk, "sync", real)
    with pytest.raises(RuntimeError):
        guard("break")  # so that a last gap is recorded
    seen["RuntimeError"] += 1
    guard.close()

    calls = 8 * each + 1
    assert sum(seen.values()) == calls == sum(counted(registry).values())
    found = records(log)
    of = {name: [r for r in found if r["event"] == f"guard.{name}"] for name in ("decision", "outcome", "refusal")}
    gaps = Counter(event for r in found if r["event"] == "audit.gap" for event, _ in r["records"])
    assert sum(r["refused"] for r in found if r["event"] == "audit.gap") == sum(gaps.values()) > 0
    decided = {r["decision_id"] for r in of["decision"]}
    ended = {r["decision_id"] for r in of["outcome"]}
    without = {decision for r in found if r["event"] == "audit.gap" for e, decision in r["records"] if "outcome" in e}
    assert decided == ended | without
    assert not ended & without
    assert len(decided) + len(of["refusal"]) + gaps["guard.decision"] + gaps["guard.refusal"] == calls
    results = Counter(r["result"] for r in of["outcome"] + of["refusal"])
    failed = sum(gaps.values())
    assert counted(registry) == {**results, "failed": failed}
    assert seen["passed"] == results["passed"] == counted(registry)["passed"]
    assert seen["AuditUnavailable"] == failed
    assert pipe.calls == len(of["outcome"]) - results["blocked"] + len(without) - blocked_without(found, without)
    report = verify_log(log, [witness])
    assert (report.verdict, report.findings) == (Verdict.VALID, [])


@pytest.mark.parametrize("capture", ["digests", "encrypted"])
def test_statistics_and_tables_count_calls_whose_records_could_not_be_written(capture, prefix, folders, monkeypatch):
    """As the metrics do, whichever of the records of a call the full disk refuses, and with texts kept or not."""
    log, witness = folders
    chance = random.Random(1)

    def full(do):
        def call(*arguments):
            if chance.random() < 0.5:
                raise OSError(28, "No space left on device")
            return do(*arguments)

        return call

    registry = CollectorRegistry()
    with AuditLog(log, witness=witness, capture=capture) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit, metrics_registry=registry)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync", full(disk.sync))
            if capture == "encrypted":
                patch.setattr(SubjectKeys, "encrypt", full(SubjectKeys.encrypt))
            for number in range(60):
                with contextlib.suppress(AuditUnavailable, PolicyBlocked, InvalidInput, RuntimeError):
                    guard(*[("a cat",), ("break",), (7,)][number % 3], **({"callback": 1} if number % 4 == 3 else {}))
        guard("a cat")  # so that a last gap is recorded

    metrics = counted(registry)
    assert metrics["failed"] > 10
    gaps = [entry for r in records(log) if r["event"] == "audit.gap" for entry in r["records"]]
    assert len({event for event, _ in gaps}) == 3  # decisions, outcomes and refusals
    found = json.loads(CliRunner().invoke(app, ["audit", "stats", str(log), "--json"]).stdout)
    assert found["results"] == metrics
    assert found["unwritten"] == Counter(event for event, _ in gaps)
    assert found["open"] == {"decisions without outcome": 0}
    table = csv.DictReader(io.StringIO(CliRunner().invoke(app, ["audit", "export", str(log), "--csv"]).stdout))
    assert Counter(row["result"] for row in table) == metrics
    exported = ["audit", "export", str(log), "--dsa", "--territory", "EU"]
    assert len(CliRunner().invoke(app, exported).stdout.splitlines()) == metrics["blocked"]


def test_a_call_that_fails_before_a_decision_is_on_record(prefix, folders, monkeypatch):
    """Such as in what an adapter makes of a text: the metrics count it, and the log has a record of it."""

    def broken(text):
        raise KeyError("Mara Voss")

    read = instant.Adapter.read
    monkeypatch.setattr(instant.Adapter, "read", lambda *a: dataclasses.replace(read(*a), readings=broken))
    names = [{"id": "stars", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}]
    rule = {"id": "r", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "anonymize"}}
    head = {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "p", "version": 1}}
    policy = Policy.model_validate({**head, "spec": {"names": names, "rules": [rule]}})
    registry = CollectorRegistry()
    with AuditLog(folders[0]) as audit:
        guard = Guard(instant.Pipe(), policy, prefix=prefix, audit=audit, metrics_registry=registry)
        with guard.context(tenant="acme"), pytest.raises(GuardUnavailable, match=r"the guard failed \(KeyError\)"):
            guard("a cat")

    assert counted(registry) == {"failed": 1}
    (refusal,) = [r for r in records(folders[0]) if r["event"].startswith("guard.")]
    assert (refusal["event"], refusal["result"], refusal["error"]) == ("guard.refusal", "failed", "KeyError")
    assert refusal["tenant"] == "acme"
    assert registry.get_sample_value("apl_guard_audit_events_total", {"sink": "log", "outcome": "written"}) == 1


def blocked_without(found, without):
    """Decisions to block whose outcome could not be written."""
    return sum(r["event"] == "guard.decision" and r["action"] == "block" and r["decision_id"] in without for r in found)


def test_the_records_flow_through_the_platforms_logger_too(prefix, folders):
    """With its processors."""
    import structlog
    from structlog.testing import LogCapture

    log, witness = folders
    captured = LogCapture()
    logger = structlog.wrap_logger(None, processors=[captured], wrapper_class=structlog.BoundLogger)
    with AuditLog(log, witness=witness, logger=logger) as audit:
        Guard(instant.Pipe(), prefix=prefix, audit=audit)("a cat")

    events = [entry["event"] for entry in captured.entries]
    assert events == ["policy.in_force", "guard.decision", "guard.outcome"]
    ours = [r for r in records(log) if r["event"].startswith("guard.")]
    assert [entry["decision_id"] for entry in captured.entries[1:]] == [r["decision_id"] for r in ours]


def test_a_platforms_logger_that_fails_leaves_no_decision_open(prefix, folders):
    """The decision is on disk when the logger raises: there is no image, and the log says that no outcome follows."""
    log, witness = folders

    class Broken:
        def info(self, event, **_):
            if event == "guard.decision":
                raise OSError(32, "Broken pipe")

    with AuditLog(log, witness=witness, logger=Broken()) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with pytest.raises(AuditUnavailable):
            guard("a cat")

    decision = next(r for r in records(log) if r["event"] == "guard.decision")
    (gap,) = [r for r in records(log) if r["event"] == "audit.gap"]
    assert gap["records"] == [["guard.outcome", decision["decision_id"]]]
    assert [r["open"] for r in records(log) if r["event"] == "audit.close"] == [[]]


@pytest.mark.parametrize(("arguments", "event"), [(("a cat",), "outcome"), ((7,), "refusal")])
def test_a_platforms_logger_that_fails_as_a_call_ends_leaves_no_image_on_record(prefix, folders, arguments, event):
    """No image was released, so the log and its statistics say so, as the metrics do; the next call is recorded."""
    log, witness = folders
    failed: list[str] = []

    class Broken:
        def info(self, event, **_):
            if not failed and event in ("guard.outcome", "guard.refusal"):
                failed.append(event)
                raise ValueError("a processor of the platform")

    registry = CollectorRegistry()
    with AuditLog(log, witness=witness, logger=Broken()) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit, metrics_registry=registry)
        with pytest.raises(AuditUnavailable):
            guard(*arguments)
        guard("a cat")

    found = records(log)
    (gap,) = [r for r in found if r["event"] == "audit.gap"]
    assert [event for event, _ in gap["records"]] == [f"guard.{event}"]
    assert [(r["event"], r["result"]) for r in found if "result" in r] == [("guard.outcome", "passed")]
    assert counted(registry) == {"passed": 1, "failed": 1}
    answer = CliRunner().invoke(app, ["audit", "stats", str(log), "--json"])
    assert json.loads(answer.stdout)["results"] == {"passed": 1, "failed": 1}


def test_no_number_of_unknown_arguments_makes_a_call_vanish_from_the_log(prefix, folders):
    """It is blocked as any other, in records and messages of bounded size, and the reasons of channels stay."""
    log, witness = folders
    guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness)
    with pytest.raises(PolicyBlocked) as caught:
        guard("a cat", **{f"{number:05d}" + "x" * 1000: 1 for number in range(20_000)})
    guard.close()

    assert len(str(caught.value)) < 5_000
    decision, outcome = (r for r in records(log) if r["event"].startswith("guard."))
    assert (decision["reasons_count"], outcome["result"]) == (20_001, "blocked")
    assert len(json.dumps(decision)) < 50_000
    assert decision["reasons"][0]["channel"] == "prompt"


def test_a_record_that_cannot_be_written_down_is_named_in_the_next(prefix, folders):
    """One longer than a line may be. Nothing is lost without a trace."""
    log, _ = folders
    with DurableLog(log) as durable, pytest.raises(AuditUnavailable, match="cannot be written down"):
        durable.append("guard.decision", {"decision_id": "d", "x": "x" * (2 << 20)}, decision="d", opens=True)

    (gap,) = [r for r in records(log) if r["event"] == "audit.gap"]
    assert gap["records"] == [["guard.decision", "d"]]


@pytest.mark.parametrize(
    "prompt",
    ["\ud800", "nul\0", "\x1b[31mred", "\u202eabc", "new\nline\r\n", "x" * 10_000_000, ["a"] * 10_000],
    ids=["surrogate", "nul", "ansi", "bidi", "lines", "10 MB", "10,000 prompts"],
)
def test_any_text_is_one_line_of_ascii(prefix, folders, prompt):
    """Nothing that a user writes can stop, split or colour a record."""
    log, witness = folders
    guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness, policy="unsafe_allow_all")
    with contextlib.suppress(PolicyBlocked, InvalidInput):
        guard(prompt)
    guard.close()

    content = b"".join(path.read_bytes() for path in (log / "segments").iterdir())
    assert content.isascii()
    assert all(byte >= 32 or byte == 10 for byte in content)
    assert sum(r["event"].startswith("guard.") for r in records(log)) in {1, 2}
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_a_checkpoint_says_that_nothing_happened(folders):
    """Without records too, from time to time."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    durable = DurableLog(log, [witness], options=LogOptions(heartbeat_seconds=0.02, checkpoint_seconds=0.01))
    assert wait_for(lambda: (witness / durable.identity.log / "checkpoints.jsonl").read_bytes().count(b"\n") > 4)
    durable.close()
    report = verify_log(log, [witness])
    assert (report.verdict, report.records) == (Verdict.VALID, 2)


@pytest.mark.parametrize("given", [{"checkpoint_records": 4}, {"checkpoint_seconds": 0.05}], ids=["records", "time"])
def test_a_checkpoint_comes_after_so_many_records_or_so_much_time(folders, given):
    """Whichever is first, at the witness, without anybody asking for it: nothing stays open to changes for longer."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    never = {"checkpoint_records": 10**6, "checkpoint_seconds": 1e6, "heartbeat_seconds": 1e6}
    durable = DurableLog(log, [witness], options=LogOptions(**never | given))
    kept = witness / durable.identity.log / "checkpoints.jsonl"

    def sealed():
        return json.loads(kept.read_bytes().splitlines()[-1])["size"]

    for number in range(3):
        call(durable, number)
        assert wait_for(lambda least=1 + 2 * number: sealed() >= least)  # all but the newest two
    durable.close()


def test_logging_that_breaks_ends_no_checkpoints(folders):
    """A witness goes and comes back, and whatever the platform's logging raises then, it is sealed again by itself."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_seconds=0.01))
    kept = witness / durable.identity.log
    asked = []

    def breaks(record):
        asked.append(record.msg)
        raise RuntimeError

    logger = logging.getLogger("apl_guard")
    logger.addFilter(breaks)
    try:
        kept.rename(away := witness / "away")
        kept.write_bytes(b"")
        call(durable, 0)
        assert wait_for(lambda: asked)
        kept.unlink()
        away.rename(kept)
        assert wait_for(lambda: len(asked) == 2)
        call(durable, 1)
        assert wait_for(lambda: json.loads((kept / "checkpoints.jsonl").read_bytes().splitlines()[-1])["size"] == 5)
    finally:
        logger.removeFilter(breaks)
        durable.close()


def test_a_witness_inside_the_log_is_refused(folders):
    """It would fall with it."""
    with pytest.raises(AuditUnavailable, match="another place"):
        AuditLog(folders[0], witness=folders[0] / "witness")


def test_a_log_in_use_and_its_own_witnesses(folders, prefix):
    """Where the log is given ready-made, its witnesses are named there."""
    with AuditLog(folders[0]) as audit, pytest.raises(InvalidInput, match="audit_witness"):
        Guard(instant.Pipe(), prefix=prefix, audit=audit, audit_witness=folders[1])
