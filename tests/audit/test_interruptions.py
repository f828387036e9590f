"""Ctrl-C, and handlers of signals that raise: wherever they come, no promised record is lost and nobody waits on."""

import contextlib
import dis
import itertools
import os
import signal
import sys
import threading
import time

import instant
import pytest
from logs import TORTURE, in_log, program, records

import apl_guard
from apl_guard import Guard, audit
from apl_guard.audit import disk
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.errors import AuditUnavailable

FOLDER = os.path.dirname(audit.__file__)
LOOKS = {"RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX", "CALL_KW"}
"""After these Python looks whether a signal has come, and nowhere else."""


class InterruptAt:
    """Raises KeyboardInterrupt the k-th time that Python looks for signals inside the code in a folder."""

    def __init__(self, k, folder=FOLDER):
        self.left, self.folder = k, folder
        self.places = {}

    def __enter__(self):
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it when tracing begins, in any frame
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        code = frame.f_code
        if not code.co_filename.startswith(self.folder):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if code not in self.places:
                steps = list(dis.get_instructions(code))
                self.places[code] = {b.offset for a, b in itertools.pairwise(steps) if a.opname in LOOKS}
            if frame.f_lasti in self.places[code]:
                self.left -= 1
                if self.left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self.trace


def in_time(what):
    """Do it in a thread; whether it comes to its end."""
    done = []
    thread = threading.Thread(target=lambda: done.append(what()), daemon=True)
    thread.start()
    thread.join(20)
    return bool(done)


class Stopped(BaseException):
    """What a handler of signals raises."""


def stop(*_):
    """Such a handler."""
    raise Stopped


@contextlib.contextmanager
def signalled(handler):
    """A signal comes in a moment."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("crowded", [False, True], ids=["alone", "while another thread writes"])
@pytest.mark.parametrize("segment_bytes", [1, 1 << 20], ids=["each record in a file of its own", "one file"])
def test_an_interruption_anywhere_in_the_code_loses_nothing(folders, monkeypatch, segment_bytes, crowded):
    """A record is interrupted at each place in turn. The next one is written, and the whole log is valid."""
    log, witness = folders
    never = {"checkpoint_seconds": 1e6, "heartbeat_seconds": 1e6, "max_exposure_seconds": 1e6}
    durable = DurableLog(log, [witness], options=LogOptions(segment_bytes=segment_bytes, **never))
    promised, at = [], 0

    def write(name):
        durable.append("guard.decision", {"decision_id": name}, decision=name, opens=True)
        promised.append(name)

    begun, sync = threading.Event(), disk.sync

    def slow_sync(handle):
        begun.set()
        sync(handle)
        time.sleep(0.01)

    monkeypatch.setattr(disk, "sync", slow_sync if crowded else sync)
    while True:
        other = threading.Thread(target=write, args=(f"beside {at}",), daemon=True)
        if crowded:  # the interrupted one waits for it, and then gets the lead
            begun.clear()
            other.start()
            begun.wait()
        try:
            with InterruptAt(at):
                write(f"interrupted at {at}")
            break  # it was over before
        except KeyboardInterrupt:
            pass
        assert in_time(lambda at=at: write(f"after {at}")), f"the record after the interruption at {at} hangs"
        assert not crowded or in_time(other.join), f"the record beside the interruption at {at} hangs"
        at += 1
    assert at > 60
    assert in_time(durable.close)

    found = [record["decision_id"] for record in records(log) if record["event"] == "guard.decision"]
    refused = [id for record in records(log) if record["event"] == "audit.gap" for _, id in record["records"]]
    assert len(set(found)) == len(found)
    assert len(set(refused)) == len(refused)
    assert sorted(set(found) & set(refused)) == []
    assert sorted(set(promised) - set(found)) == []
    assert sum(name.startswith("after") for name in promised) == at
    report = verify_log(log, [witness])
    assert (report.verdict, report.findings) == (Verdict.VALID, [])


def test_a_guarded_call_that_is_interrupted_anywhere_lets_the_next_one_through(prefix, folders):
    """Wherever in the guard it is: what was decided has an outcome, stands in a gap, or is named in the end as open."""
    log, witness = folders
    with Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness) as guard:
        guard("a cat")
        for at in itertools.count(step=1 if TORTURE else 11):
            try:
                with InterruptAt(at, os.path.dirname(apl_guard.__file__)):
                    guard("a cat")
                break
            except KeyboardInterrupt:
                pass
            assert in_time(lambda: guard("a cat")), f"the call after the interruption at {at} hangs"
    assert at > 500

    assert verify_log(log, [witness]).verdict is Verdict.VALID
    found = records(log)
    decided, done = (
        {record["decision_id"] for record in found if record["event"] == event}
        for event in ("guard.decision", "guard.outcome")
    )
    refused = {id for record in found if record["event"] == "audit.gap" for _, id in record["records"]}
    assert found[-1]["event"] == "audit.close"
    assert decided - done - refused <= set(found[-1]["open"]) <= decided - done


def test_a_closing_that_is_interrupted_is_done_again(tmp_path):
    """Ctrl-C anywhere in it while others write, and then the end of the program: the log is valid all the same."""
    for at in itertools.count(step=1 if TORTURE else 23):
        log, witness = tmp_path / f"log{at}", tmp_path / f"witness{at}"
        durable = DurableLog(log, [witness])

        def write(thread, durable=durable):
            with contextlib.suppress(AuditUnavailable):
                for k in itertools.count():
                    durable.append("guard.decision", {"decision_id": f"{thread}-{k}"}, decision=f"{thread}-{k}")

        threads = [threading.Thread(target=write, args=(thread,), daemon=True) for thread in range(3)]
        for thread in threads:
            thread.start()
        is_over = False
        try:
            with InterruptAt(at):
                durable.close()
            is_over = True
        except KeyboardInterrupt:
            pass
        assert in_time(durable.close), f"after an interruption at {at} it hangs"
        for thread in threads:
            thread.join()
        assert verify_log(log, [witness]).verdict is Verdict.VALID, at
        assert records(log)[-1]["event"] == "audit.close", at
        if is_over:
            break
    assert at > 150


def writing(durable, monkeypatch):
    """A thread in the middle of writing the record `first`, and the event that lets it end."""
    begun, go, sync = threading.Event(), threading.Event(), disk.sync

    def slow_sync(handle):
        begun.set()
        assert go.wait(20)
        sync(handle)

    monkeypatch.setattr(disk, "sync", slow_sync)
    other = threading.Thread(target=durable.append, args=("first", {}), kwargs={"decision": None})
    other.start()
    begun.wait()
    return other, go


def test_who_is_interrupted_while_waiting_holds_nobody_up(folders, monkeypatch):
    """A signal comes while the main thread waits for another that writes: its own record is never begun."""
    log, witness = folders
    durable = DurableLog(log, [witness])
    other, go = writing(durable, monkeypatch)
    with pytest.raises(Stopped), signalled(stop):
        durable.append("second", {}, decision=None)
    go.set()
    other.join()
    assert in_time(lambda: durable.append("third", {}, decision=None))
    durable.close()
    events = [record["event"] for record in records(log)]
    assert [event for event in events if not event.startswith("audit.")] == ["first", "third"]


def test_who_is_interrupted_while_closing_waits_for_the_others_once_more(folders, monkeypatch):
    """Ctrl-C while another thread writes, and then the end of the program: its record comes before the last one."""
    log, witness = folders
    durable = DurableLog(log, [witness])
    other, go = writing(durable, monkeypatch)
    with pytest.raises(Stopped), signalled(stop):
        durable.close()
    again = threading.Thread(target=durable.close)
    again.start()
    again.join(0.5)
    go.set()
    again.join()
    other.join()
    events = [record["event"] for record in records(log)]
    assert events == ["audit.segment", "first", "audit.close"]
    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_a_handler_that_closes_the_log_in_the_middle_of_a_record_is_told_so(folders, monkeypatch):
    """It would wait for the record that it has interrupted. Behind it, the log closes as ever."""
    log, witness = folders
    durable = DurableLog(log, [witness])
    sync = disk.sync

    def slow_sync(handle):
        time.sleep(0.3)
        sync(handle)

    monkeypatch.setattr(disk, "sync", slow_sync)
    with pytest.raises(AuditUnavailable), signalled(lambda *_: durable.close()):
        durable.append("first", {}, decision=None)
    assert in_time(lambda: durable.append("second", {}, decision=None))
    assert in_time(durable.close)
    assert [record["event"] for record in records(log)][-1] == "audit.close"
    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_processes_that_a_signal_stops_end_their_logs(folders):
    """SIGTERM at random times, whose handler raises SystemExit: each process ends, and says what was left open."""
    log, witness = folders
    rounds = 500 if TORTURE else 20
    found = program("stops", log, witness, rounds, 3)
    assert found.returncode == 0, found.stdout[-300:] + found.stderr
    promised = found.stdout.splitlines()
    assert len(promised) > rounds

    report = verify_log(log, [witness])
    assert (report.verdict, report.findings, report.records) == (Verdict.VALID, [], report.witnessed)
    assert sorted(set(promised) - set(in_log(log))) == []
    written = records(log)
    assert [record["event"] for record in written].count("audit.close") == rounds
    decided, done = (
        {record["decision_id"] for record in written if record["event"] == event}
        for event in ("guard.decision", "guard.outcome")
    )
    left_open = {decision for record in written if record["event"] == "audit.close" for decision in record["open"]}
    refused = {decision for record in written if record["event"] == "audit.gap" for _, decision in record["records"]}
    assert left_open == decided - done - refused
