"""What `verify` says: valid, tampered, torn, or that it cannot tell."""

import json
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import mutants
import pytest
from logs import TORTURE, call, make_log

from apl_guard import AuditUnavailable
from apl_guard.audit import segment_files
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.segment_files import segment_name
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

MUTANTS = 10_000 if TORTURE else 220


class TestExitCodes:
    """A verifier that says "ok" when it failed is worse than none."""

    def test_0_valid(self, run, copy):
        """A whole log against its witness; the public key may be given too, as mail and editors pass it on."""
        log, witness = copy
        content = (log / "log.json").read_bytes()
        key = json.loads(content)["root"]
        mailed = log.parent / "mailed.json"
        mailed.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))

        assert run("verify", log, "--witness", witness)[0] == 0
        for given in (key, f" {key.upper()}\n", log / "log.json", mailed):
            assert run("verify", log, "--witness", witness, "--public-key", given)[0] == 0

    @pytest.mark.parametrize("name", ["log.json", "segments/*"])
    def test_1_copied_as_text(self, run, copy, name):
        """It is another log then, byte for byte; whoever moved it is told what went wrong."""
        log, witness = copy
        for path in log.glob(name):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

        code, out, _ = run("verify", log, "--witness", witness)
        assert (code, "it was copied as text rather than byte for byte" in out) == (1, True)

    def test_1_tampered_names_the_first_bad_record(self, run, copy):
        """By writer and number."""
        log, witness = copy
        segment = sorted((log / "segments").iterdir())[0]
        segment.write_bytes(segment.read_bytes().replace(b"anonymize", b"allowance", 1))

        code, out, _ = run("verify", log, "--witness", witness, "--json")

        assert code == 1
        (finding,) = json.loads(out)["findings"]
        assert segment.name.split(".")[0] in finding
        assert "record 1 " in finding

    def test_1_another_public_key(self, run, copy):
        """Than the one that the verifier knows."""
        assert run("verify", copy[0], "--witness", copy[1], "--public-key", "0" * 64)[0] == 1

    def test_2_torn(self, run, folders):
        """A half record after the last checkpoint, as a crash leaves it."""
        log, witness = folders
        make_log(log, witness, calls=3, writers=1)
        open_log = DurableLog(log, [witness])
        call(open_log, 0)
        open_log.leave()  # as if its process had died
        segment = sorted((log / "segments").iterdir())[-1]
        with segment.open("ab") as stream:
            stream.write(b'{"writer":"')

        code, out, _ = run("verify", log, "--witness", witness)

        assert code == 2
        assert "torn" in out

    def test_2_ends_with_the_next_start(self, run, folders):
        """The next process records what was torn and seals the rest."""
        self.test_2_torn(run, folders)
        log, witness = folders
        DurableLog(log, [witness]).close()

        code, out, _ = run("verify", log, "--witness", witness)

        assert code == 0
        assert "recorded and set aside" in out

    def test_3_without_a_witness(self, run, copy):
        """However whole the log looks."""
        code, out, _ = run("verify", copy[0])

        assert code == 3
        assert "written anew" in out

    def test_3_with_an_empty_witness(self, run, copy, tmp_path):
        """Which has nothing to hold it against."""
        (tmp_path / "empty").mkdir()

        assert run("verify", copy[0], "--witness", tmp_path / "empty")[0] == 3

    @pytest.mark.parametrize("is_there", [True, False])
    def test_3_with_a_witness_that_has_received_nothing(self, run, copy, is_there):
        """It knows which log it is, and none of its checkpoints."""
        log, witness = copy
        (kept,) = witness.glob(f"*/{CHECKPOINTS}")
        kept.write_bytes(b"")
        if not is_there:
            kept.unlink()

        code, out, _ = run("verify", log, "--witness", witness)
        assert (code, "the witness holds no checkpoint of it" in out, "--witness" in out) == (3, True, False)

    @pytest.mark.parametrize(
        "arguments", [["verify"], ["verify", "no-such-folder"], ["verify", "--no-such-option"], ["verify", "."]]
    )
    def test_4_usage(self, run, arguments, tmp_path, monkeypatch):
        """No log, no such folder, no such option: nothing that could be mistaken for a verdict."""
        monkeypatch.chdir(tmp_path)

        assert run(*arguments)[0] == 4

    def test_a_receipt_has_the_same_codes(self, run, copy, tmp_path):
        """Valid with the key, tampered under another, unverifiable without; a line for each record, whole as JSON."""
        log, witness = copy
        key, receipt = json.loads((log / "log.json").read_text())["root"], tmp_path / "receipt.json"
        assert run("prove", log, f"{3:032x}", "--output", receipt)[0] == 0

        for arguments, code, verdict in (
            (["--public-key", key], 0, "valid"),
            (["--public-key", "0" * 64], 1, "tampered"),
            ([], 3, "unverifiable"),
        ):
            assert run("verify", receipt, *arguments)[0] == code
            found, out, _ = run("verify", receipt, *arguments, "--json")
            answer = json.loads(out)
            assert (found, answer["verdict"], len(answer["records"])) == (code, verdict, 0 if code else 2)
        for witnesses, asked in (([], True), (["--witness", witness], False)):
            out = run("verify", receipt, "--public-key", key, *witnesses)[1]
            assert out.startswith("valid  records: 2, ")
            lines = [line.split("  ")[2:] for line in out.splitlines()[1:]]
            said = [f"{3:032x}", "p", "anonymize"]
            assert lines == [["guard.decision", *said], ["guard.outcome", *said, "passed"]]
            assert ("no witness was asked" in out) == asked
        receipt.write_bytes(b"\xff a picture")
        wrong = "tampered  receipt: is none that `apl-guard audit prove` wrote\n"
        assert run("verify", receipt, "--public-key", key)[:2] == (1, wrong)

    def test_4_wrong_options(self, run, copy):
        """A witness that is not there, a key that is none."""
        assert run("verify", copy[0], "--witness", copy[0] / "nothing")[0] == 4
        assert run("verify", copy[0], "--public-key", "nothing")[0] == 4
        os.mkfifo(copy[0].parent / "pipe")  # is not waited for
        assert run("verify", copy[0], "--public-key", copy[0].parent / "pipe")[0] == 4


class TestWhatStandsBehindTheLastRecord:
    """A half record is what a crash leaves, what is being written, or what somebody put there."""

    @staticmethod
    def add_half_a_record(log):
        with sorted((log / "segments").iterdir())[-1].open("ab") as stream:
            stream.write(b'{"writer":"')

    def test_of_a_writer_that_lives_it_is_being_written(self, folders):
        """And of one that has died, torn."""
        log, witness = folders
        with DurableLog(log, [witness]) as durable:
            call(durable, 0)
            durable.seal()
            self.add_half_a_record(log)
            report = verify_log(log, [witness])
            assert (report.verdict, report.torn) == (Verdict.VALID, [])
            assert any("being written just now" in note for note in report.notes)

            durable.leave()  # as if its process had died
            report = verify_log(log, [witness])
            assert report.verdict == Verdict.TORN
            assert any("record 3 is cut off" in torn for torn in report.torn)

    def test_of_a_writer_that_was_closed_it_was_added(self, folders):
        """For nothing comes behind a last record."""
        log, witness = folders
        make_log(log, witness, calls=1, writers=1)
        self.add_half_a_record(log)

        report = verify_log(log, [witness])

        assert report.verdict == Verdict.TAMPERED
        assert any("bytes were added after the writer was closed" in finding for finding in report.findings)

    def test_records_of_a_dead_writer_under_no_checkpoint_are_torn(self, folders):
        """It ended between its first record and the first checkpoint; one that lives will still make it."""
        log, _ = folders
        with DurableLog(log) as durable:
            (log / CHECKPOINTS).write_bytes(b"")
            assert verify_log(log).verdict == Verdict.UNVERIFIABLE

            durable.leave()
            report = verify_log(log)
            assert report.verdict == Verdict.TORN
            assert any("ended before its first checkpoint" in torn for torn in report.torn)

    @pytest.mark.parametrize("lives", [True, False])
    def test_a_record_that_others_name_and_that_was_changed_is_no_half_record(self, folders, lives):
        """Also where no checkpoint is over it yet: the next record names the hash of another."""
        log, witness = folders
        with DurableLog(log, [witness], options=LogOptions(checkpoint_seconds=3600)) as durable:
            call(durable, 0)
            durable.seal()
            call(durable, 1)
            if not lives:
                durable.leave()
            (segment,) = (log / "segments").iterdir()
            *before, changed, last = segment.read_bytes().splitlines(keepends=True)
            segment.write_bytes(b"".join([*before, changed.replace(b"anonymize", b"allowance"), last]))

            report = verify_log(log, [witness])

        assert report.verdict == Verdict.TAMPERED
        assert "record 3 is not the one that record 4 names" in report.findings[0]

    def test_of_a_writer_that_died_before_its_first_record_nothing_is_torn(self, copy):
        """Its file is there and empty: nobody was told of a record."""
        log, witness = copy
        (log / "segments" / segment_name("0" * 24, 0)).touch()

        report = verify_log(log, [witness])

        assert (report.verdict, report.torn, report.findings) == (Verdict.VALID, [], [])


def test_every_mutant_is_found(whole, tmp_path):
    """Edits, deletions, swaps, insertions, truncations, re-forged chains and forks of what is under a checkpoint."""
    chance = random.Random(20_261_124)
    missed = []
    counts = dict.fromkeys(mutants.KINDS, 0)
    for number in range(MUTANTS):
        kind = mutants.KINDS[number % len(mutants.KINDS)]
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        shutil.copytree(whole / "log", tmp_path / "log")
        what = mutants.mutate(tmp_path / "log", kind, chance)
        counts[kind] += 1
        if verify_log(tmp_path / "log", [whole / "witness"]).verdict != Verdict.TAMPERED:
            missed.append((kind, what))

    assert missed == []
    assert all(counts.values())


def test_a_listing_that_lacks_a_segment_begun_meanwhile_is_made_again(folders, monkeypatch):
    """A folder is not listed in one moment: a file may be in the listing, and one that was begun before it not."""
    log, witness = folders
    with DurableLog(log, [witness], options=LogOptions(segment_bytes=3000)) as durable:
        for number in range(20):
            call(durable, number)
    listed, times = segment_files._listed, []

    def in_the_meantime(folder):
        times.append(folder)
        found = listed(folder)
        if len(times) == 1:
            for numbers in found.values():
                numbers.remove(numbers[-2])
        else:
            for numbers in found.values():
                numbers.append(numbers[-1] + 1)  # begun since, and not to be looked at without those between
        return found

    monkeypatch.setattr(segment_files, "_listed", in_the_meantime)

    report = verify_log(log, [witness])

    assert (report.verdict, report.findings, len(times)) == (Verdict.VALID, [], 2)


# Each time with another log: one that grows while it is read would take ever longer.
@pytest.mark.parametrize("again", range(40 if TORTURE else 1))
def test_a_log_in_use_is_valid_at_any_moment(folders, again):
    """Verification does not disturb the writer, nor the writer the verification."""
    log, witness = folders
    options = LogOptions(
        checkpoint_seconds=0.01, checkpoint_records=8, segment_bytes=3000, epochs=8, epoch_seconds=0.05
    )
    durable = DurableLog(log, [witness], options=options)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            call(durable, number)
            number += 1

    with durable, ThreadPoolExecutor(3) as pool:
        written = [pool.submit(write) for _ in range(3)]
        try:
            for _ in range(15):
                report = verify_log(log, [witness])
                assert report.verdict == Verdict.VALID, report
        finally:
            stop.set()
        for each in written:
            each.result()
    report = verify_log(log, [witness])
    assert (report.verdict, report.records) == (Verdict.VALID, report.witnessed)


def test_a_copy_of_a_log_in_use_is_valid_and_not_gone_on_with(folders, tmp_path):
    """In the order of the documentation: the witness, then checkpoints, then records."""
    log, witness = folders
    options = LogOptions(checkpoint_seconds=0.01, checkpoint_records=8, segment_bytes=3000)
    stop, copied = threading.Event(), tmp_path / "copy"

    def write():
        number = 0
        while not stop.is_set():
            call(durable, number)
            number += 1

    with DurableLog(log, [witness], options=options) as durable, ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        try:
            for _ in range(5):
                shutil.rmtree(copied, ignore_errors=True)
                shutil.rmtree(tmp_path / "kept", ignore_errors=True)
                shutil.copytree(witness, tmp_path / "kept")
                copied.mkdir()
                for name in ("log.json", "keys-000000.pub", "checkpoints.jsonl"):
                    shutil.copy(log / name, copied)
                shutil.copytree(log / "segments", copied / "segments")
                report = verify_log(copied, [tmp_path / "kept"])
                assert report.findings == []
                assert report.witnessed > 0
        finally:
            stop.set()
        written.result()
    shutil.copytree(log / "keys", copied / "keys")
    with pytest.raises(AuditUnavailable, match="goes on from a copy"):
        DurableLog(copied, [witness])
