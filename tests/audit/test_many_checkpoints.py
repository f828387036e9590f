"""A log that was written slowly and for long: a checkpoint a second, from each process, for weeks."""

import shutil
import tracemalloc
from pathlib import Path

import pytest

from apl_guard.audit import disk, locks, merkle
from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.folder import LOCK
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.receipt import prove, prove_consistency
from apl_guard.audit.seal_key import SealKey
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

MANY = 6000


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A log with many checkpoints of one epoch, and its witness."""
    root = tmp_path_factory.mktemp("slow")
    log, witness = root / "log", root / "witness"
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_seconds=3600))
    durable.append("guard.refusal", {"decision_id": "d1"}, decision="d1")
    durable.seal()
    durable.leave()
    lines, history = (log / CHECKPOINTS).read_bytes().splitlines(), Tree()
    key = SealKey(log / "keys" / "seal.key").read()[0]
    for line in lines:
        history.append(leaf_hash(line))
    fields = Checkpoint.parse(lines[-1]).__dict__
    while len(lines) < MANY:
        changed = fields | {"number": len(lines), "history": history.root.hex()}
        lines.append(Checkpoint(**changed).signed(key))
        history.append(leaf_hash(lines[-1]))
    for place in (log, *witness.iterdir()):
        (place / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))
    return log, witness


def most_memory(what):
    """Of Python's own, while something is done; and what that gives."""
    tracemalloc.start()
    try:
        return what(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_a_checkpoint_says_is_not_kept_in_memory(slow):
    """Lines are read one by one, of the log and of its witnesses, whoever asks."""
    log, witness = slow
    size = (log / CHECKPOINTS).stat().st_size
    verify_log(log, [witness])  # modules that are loaded by the first are none of its memory

    report, of_verify = most_memory(lambda: verify_log(log, [witness]))
    receipt, of_prove = most_memory(lambda: prove(log, "d1"))
    proof, of_consistency = most_memory(lambda: prove_consistency(log, 3, MANY - 1))

    assert (report.verdict, report.checkpoints) == (Verdict.VALID, MANY)
    assert (len(receipt["records"]), bool(proof["history"])) == (1, True)
    assert max(of_verify, of_prove, of_consistency) < size / 2


@pytest.mark.parametrize("bad", [2, 3500, MANY - 1])
def test_a_signature_that_does_not_fit_is_named(slow, tmp_path, bad):
    """Wherever it stands, though the hashes after it fit: those who seal go on from what they find in the file."""
    shutil.copytree(slow[0], tmp_path / "log")
    lines = (tmp_path / "log" / CHECKPOINTS).read_bytes().splitlines()
    key, history = SealKey(tmp_path / "log" / "keys" / "seal.key").read()[0], Tree()
    for number, line in enumerate(lines):
        if number > bad:
            line = Checkpoint(**Checkpoint.parse(line).__dict__ | {"history": history.root.hex()}).signed(key)
        elif number == bad:
            line = line[:-10] + b"0" * 8 + line[-2:]
        lines[number] = line
        history.append(leaf_hash(line))
    (tmp_path / "log" / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

    report = verify_log(tmp_path / "log")

    assert report.verdict == Verdict.TAMPERED
    assert report.findings == [f"checkpoint {bad} is not signed with the key of epoch 0.0"]


@pytest.fixture
def long(folders, monkeypatch):
    """A log with one long row, in which one guard put sixty policies in force."""
    log, _ = folders
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", lambda _: None)
        with DurableLog(log, options=LogOptions(checkpoint_records=500, checkpoint_seconds=1e6)) as durable:
            for number in range(15_000):
                about = {"guard": "g1"} if number % 250 == 0 else {}
                durable.append("policy.reloaded", about, decision=None)
    return log


def test_a_receipt_takes_little_memory_however_many_records_there_are(long):
    """Their hashes alone would be a megabyte, of each list of them."""
    prove(long, "g1")
    last = sum(1 for _ in (long / CHECKPOINTS).open()) - 1

    _, of_prove = most_memory(lambda: prove(long, "g1"))
    proof, of_consistency = most_memory(lambda: prove_consistency(long, 0, last))

    assert proof["records"]
    assert max(of_prove, of_consistency) < 1 << 20


def test_a_receipt_for_many_records_looks_at_the_row_once(long, monkeypatch):
    """And not once for each of them: a guard that runs for a month may read its policy again a hundred times."""
    hashed = []
    real = merkle._node_hash
    monkeypatch.setattr(merkle, "_node_hash", lambda left, right: hashed.append(1) or real(left, right))

    receipt = prove(long, "g1")

    assert len(receipt["records"]) == 60
    assert len(hashed) < 10 * 15_000


def test_others_seal_while_a_witness_is_read_at_the_start(slow, tmp_path, monkeypatch):
    """After a year that is gigabytes, perhaps from another machine: a lock held so long would stop every guard."""
    log, witness = (Path(shutil.copytree(place, tmp_path / place.name)) for place in slow)
    copy = next(witness.iterdir()) / CHECKPOINTS
    was_free = []
    real = Path.open

    def look(path, mode="r", *more, **options):
        if (path, mode) == (copy, "rb"):
            with real(log / LOCK, "rb") as stream:
                was_free.append(locks.try_lock(stream.fileno()))
        return real(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", look)
    with DurableLog(log, [witness]) as durable:
        durable.append("guard.refusal", {}, decision=None)

    assert was_free == [True]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_many_records_without_a_checkpoint_take_little_memory(folders, monkeypatch):
    """Such as those of a log whose checkpoints somebody removed."""
    log, _ = folders
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", lambda _: None)
        durable = DurableLog(log, options=LogOptions(checkpoint_records=10**9, checkpoint_seconds=1e6))
        for _ in range(15_000):
            durable.append("guard.refusal", {}, decision=None)
        durable.leave()  # as if its process had died
    tracemalloc.start()
    report = verify_log(log)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert report.records == 15_001
    assert peak < 1 << 20
