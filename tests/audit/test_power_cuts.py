"""Power cuts: whatever a disk may hold behind one, no record that was promised is lost, and nobody is accused."""

import random

import pytest
from logs import TORTURE, call, in_log
from power import Disk

from apl_guard import AuditUnavailable
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.rotate import rotate
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

ROUNDS = 40 if TORTURE else 2
OPTIONS = LogOptions(segment_bytes=1500, epochs=2, epoch_seconds=0, checkpoint_seconds=1e6)


@pytest.mark.parametrize("round", range(ROUNDS))
def test_a_power_cut_at_any_moment_loses_nothing_that_was_promised(tmp_path, monkeypatch, round):
    """Right before any sync, with nothing on the disk but what was synced, or with any part of the rest."""
    chance = random.Random(round)
    root, cuts, promised = tmp_path / "disk", [], []
    root.mkdir()
    drive = Disk(root)

    def cut():
        place = tmp_path / f"cut-{len(cuts)}"
        drive.cut(place, chance if round % 2 else None)
        cuts.append((place, list(promised)))

    with drive.watch(monkeypatch, cut):
        number = 0
        for _ in range(2):
            with DurableLog(root / "log", [root / "witness"], options=OPTIONS) as log:
                for _ in range(3):
                    call(log, number)
                    promised += [f"guard.{event} {number:032x}" for event in ("decision", "outcome")]
                    number += 1
                    log.seal()
            rotate(root / "log", witnesses=[root / "witness"])
        cut()
    drive.close()

    wrong = [found for place, promised in cuts if (found := what_is_wrong(place, promised))]
    assert wrong == []
    assert len(cuts) > 90


def what_is_wrong(place, promised):
    log, witness = place / "log", place / "witness"
    if (log / LOG_FILE).exists():
        report = verify_log(log, [witness] if witness.exists() else [])
        if report.verdict == Verdict.TAMPERED:
            return report.findings
    if promised and not (log.exists() and set(promised) <= set(in_log(log))):
        return "records are lost"
    DurableLog(log, [witness], options=OPTIONS).close()
    report = verify_log(log, [witness])
    return None if report.verdict == Verdict.VALID and set(promised) <= set(in_log(log)) else str(report)


def test_a_witness_that_a_power_cut_left_with_zeros_is_brought_on(copy):
    """They are no checkpoint, so nobody is accused, and no service stays down; anything else there is looked at."""
    log, witness = copy
    kept = next(witness.iterdir()) / CHECKPOINTS
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-30] + bytes(5000))
    assert verify_log(log, [witness]).findings == []

    DurableLog(log, [witness]).close()

    assert kept.read_bytes() == (log / CHECKPOINTS).read_bytes()
    assert verify_log(log, [witness]).verdict == Verdict.VALID
    kept.write_bytes(whole[:-30] + bytes(5000) + b"x")
    with pytest.raises(AuditUnavailable, match="until somebody has looked"):
        DurableLog(log, [witness])
