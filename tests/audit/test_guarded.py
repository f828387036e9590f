"""The guard and its log together: no image without its records, and no record too many or too few."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import instant
import pytest
from logs import TORTURE
from prometheus_client import CollectorRegistry

from apl_guard import AuditUnavailable, Guard, InvalidInput, PolicyBlocked, backend
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.recover import writers_in
from apl_guard.audit.row import Row
from apl_guard.audit.verify import Verdict, verify_log


@pytest.fixture(autouse=True)
def adapter(monkeypatch):
    """The guard finds the adapter of the instant backend as it finds a built-in one."""
    monkeypatch.setitem(backend._BUILT_IN, "instant", "instant:Adapter")


def records(log):
    """All records that count, in the order of their writers."""
    segments = log / "segments"
    return [json.loads(line.content) for writer, n in writers_in(segments).items() for line in Row(segments, writer, n)]


def counted(registry):
    """Result → how many calls ended so."""
    samples = next(m.samples for m in registry.collect() if m.name == "apl_guard_outcomes")
    return {s.labels["result"]: int(s.value) for s in samples if s.name.endswith("_total") and s.value}


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

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(disk, "sync", real)
    with pytest.raises(RuntimeError):
        guard("break")  # so that a last gap is recorded
    seen["RuntimeError"] += 1
    guard._audit.close()

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


def blocked_without(found, without):
    """Decisions to block whose outcome could not be written."""
    return sum(r["event"] == "guard.decision" and r["action"] == "block" and r["decision_id"] in without for r in found)


class TestFullDisk:
    """A real one, of a few hundred kilobytes."""

    @pytest.fixture
    def small(self, tmp_path):
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("needs the right to mount a small file system")
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_no_image_is_released_and_none_is_missing_from_the_log(self, small, prefix, tmp_path):
        """Full, the guard refuses; with room again it goes on and says what is missing."""
        (small / "ballast").write_bytes(bytes(60_000))
        log, witness = small / "log", tmp_path / "witness"
        registry, pipe = CollectorRegistry(), instant.Pipe()
        guard = Guard(pipe, prefix=prefix, audit=log, audit_witness=witness, metrics_registry=registry)
        released, refused, messages = 0, 0, set()
        while refused < 20:
            try:
                guard("a cat")
                released += 1
            except AuditUnavailable as error:
                messages.add(str(error).partition("(")[2].partition(")")[0])
                refused += 1

        assert messages == {"No space left on device"}
        assert released > 0
        passed = [r for r in records(log) if r.get("result") == "passed"]
        assert len(passed) == released == counted(registry)["passed"]
        assert counted(registry)["failed"] == refused

        (small / "ballast").unlink()
        guard("a cat")
        gaps = [r for r in records(log) if r["event"] == "audit.gap"]
        assert sum(r["refused"] for r in gaps) == refused
        guard._audit.close()
        assert verify_log(log, [witness]).verdict == Verdict.VALID

    def test_a_folder_without_room_is_refused_at_the_start(self, small, prefix, tmp_path):
        """Before the first call."""
        with (small / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))

        with pytest.raises(AuditUnavailable, match="No space left"):
            Guard(instant.Pipe(), prefix=prefix, audit=small / "log", audit_witness=tmp_path / "witness")


def test_a_file_size_limit_stops_images_too(prefix, folders):
    """Where a process may write nothing at all any more, as on a full disk."""
    import resource

    log, witness = folders
    pipe = instant.Pipe()
    guard = Guard(pipe, prefix=prefix, audit=log, audit_witness=witness)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(AuditUnavailable, match="no image"):
                guard("a cat")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert pipe.calls == 0
    guard("a cat")
    guard._audit.close()
    assert [r["refused"] for r in records(log) if r["event"] == "audit.gap"] == [3]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_no_images_where_the_witness_fails_for_too_long(prefix, folders):
    """Nobody could tell later that records were changed; with the witness back it goes on."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    options = LogOptions(checkpoint_seconds=0.01, max_exposure_seconds=0.05)
    audit = AuditLog(log, witness=witness, options=options)
    pipe = instant.Pipe()
    guard = Guard(pipe, prefix=prefix, audit=audit)
    (witness / audit.identity.log).rename(witness / "away")
    (witness / audit.identity.log).write_text("in the way")

    def refused():
        try:
            guard("a cat")
        except AuditUnavailable as error:
            return "no checkpoint" in str(error)
        return False

    assert wait_for(refused)
    (witness / audit.identity.log).unlink()
    (witness / "away").rename(witness / audit.identity.log)
    assert wait_for(lambda: not refused())
    audit.close()
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def wait_for(what):
    """Whether it comes true within some seconds."""
    from time import monotonic, sleep

    end = monotonic() + 20
    while monotonic() < end:
        if what():
            return True
        sleep(0.01)
    return False


def test_the_records_flow_through_the_platforms_logger_too(prefix, folders):
    """With its processors, after they are on disk."""
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


def test_no_number_of_unknown_arguments_makes_a_call_vanish_from_the_log(prefix, folders):
    """It is blocked as any other, in records and messages of bounded size, and the reasons of channels stay."""
    log, witness = folders
    guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness)
    with pytest.raises(PolicyBlocked) as caught:
        guard("a cat", **{f"{number:05d}" + "x" * 1000: 1 for number in range(20_000)})
    guard._audit.close()

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
    guard._audit.close()

    content = b"".join(path.read_bytes() for path in (log / "segments").iterdir())
    assert content.isascii()
    assert all(byte >= 32 or byte == 10 for byte in content)
    assert sum(r["event"].startswith("guard.") for r in records(log)) in {1, 2}
    assert verify_log(log, [witness]).verdict == Verdict.VALID


class TestKeys:
    """Missing, wrong, from another log, put back from a copy."""

    @pytest.fixture
    def log(self, folders, prefix):
        log, witness = folders
        guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness)
        guard("a cat")
        guard._audit.close()
        return log

    def reopen(self, log):
        AuditLog(log, witness=log.parent / "witness").close()

    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_missing(self, log, name):
        """The message says what to do; no new key takes its place."""
        (log / "keys" / name).unlink()

        with pytest.raises(AuditUnavailable, match="backup"):
            self.reopen(log)

    @pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"\xff" * 9000])
    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_damaged(self, log, name, content):
        """As missing."""
        (log / "keys" / name).write_bytes(content)

        with pytest.raises(AuditUnavailable, match="key"):
            self.reopen(log)

    def test_of_another_log(self, log, tmp_path):
        """What it would sign could never be verified."""
        AuditLog(tmp_path / "other").close()
        (log / "keys" / "seal.key").write_bytes((tmp_path / "other" / "keys" / "seal.key").read_bytes())

        with pytest.raises(AuditUnavailable, match="another log"):
            self.reopen(log)

    def test_read_only_folder(self, log):
        """Refused at the start."""
        if os.geteuid() == 0:
            (log / ".lock").unlink()
            (log / ".lock").mkdir()  # root may write anywhere, but not into a folder as if it were a file
        else:
            log.chmod(0o500)

        with pytest.raises(AuditUnavailable, match="cannot be used"):
            self.reopen(log)
        log.chmod(0o700)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt rw - tmpfs tmpfs rw
31 30 0:41 / /mnt/share rw shared:7 - nfs4 host:/share rw
32 31 0:42 / /mnt/share/local rw - xfs /dev/vdb rw
33 22 0:43 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
34 22 0:44 / /data rw - nfs host:/ rw
35 22 0:45 / /data rw - ext4 /dev/vdc rw
damaged line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/log", None),
        ("/mnt/log", None),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/log/deep", "nfs4"),
        ("/mnt/shared", None),
        ("/mnt/share/local/log", None),
        ("/mnt/with space/log", "fuse.sshfs"),
        ("/data/log", None),
    ],
)
def test_network_file_systems_are_told_from_local_ones(path, kind):
    """By the innermost mount, of two on one place by the later."""
    assert disk.network_file_system(Path(path), MOUNTS) == kind


def test_a_log_on_a_network_file_system_is_refused(folders, monkeypatch):
    """At the start. A witness may be on one."""
    monkeypatch.setattr(disk, "network_file_system", lambda path: "nfs4")

    with pytest.raises(AuditUnavailable, match="local"):
        AuditLog(folders[0], witness=folders[1])


def test_a_checkpoint_says_that_nothing_happened(folders):
    """Without records too, from time to time."""
    from apl_guard.audit.durable import LogOptions

    log, witness = folders
    durable = DurableLog(log, [witness], options=LogOptions(heartbeat_seconds=0.02, checkpoint_seconds=0.01))
    assert wait_for(lambda: (witness / durable.identity.log / "checkpoints.jsonl").read_bytes().count(b"\n") > 4)
    durable.close()
    report = verify_log(log, [witness])
    assert (report.verdict, report.records) == (Verdict.VALID, 2)


def test_a_witness_inside_the_log_is_refused(folders):
    """It would fall with it."""
    with pytest.raises(AuditUnavailable, match="another place"):
        AuditLog(folders[0], witness=folders[0] / "witness")


def test_a_log_in_use_and_its_own_witnesses(folders, prefix):
    """Where the log is given ready-made, its witnesses are named there."""
    with AuditLog(folders[0]) as audit, pytest.raises(InvalidInput, match="audit_witness"):
        Guard(instant.Pipe(), prefix=prefix, audit=audit, audit_witness=folders[1])
