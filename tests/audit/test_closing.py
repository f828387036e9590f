"""How a log ends that nobody closes: whenever the garbage collector comes, whatever locks its thread then holds."""

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from logs import call, records, wait_for

from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.errors import AuditUnavailable

PROGRAM = """
import gc, sys
from pathlib import Path
from logs import call, records, wait_for
from apl_guard.audit import locks
from apl_guard.audit.durable import DurableLog, LogOptions

gc.disable()
own, other, when = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
log = DurableLog(own, [Path(sys.argv[4])], options=LogOptions(checkpoint_records=1, checkpoint_seconds=0))
core, ring = log._core, [log]
ring.append(ring)
call(log, 1)
del log, ring  # from now on only the collector reaches it
is_collected = []

def collect():
    gc.collect()
    is_collected.append(True)

if when == "another log is opened":
    DurableLog(other).close()
    with locks.lock(other / ".lock"):
        collect()
elif when == "the same log is opened":
    with locks.lock(own / ".lock"):
        collect()
elif when == "its records are written":
    with core.writer._lock:
        collect()
elif when == "its own thread seals":
    add = core._checkpoints.add
    def seal(*arguments, **named):
        if not is_collected:
            collect()
        return add(*arguments, **named)
    core._checkpoints.add = seal
    core._committed(1)
elif when == "its own thread is woken":
    assert wait_for(lambda: not core._has_some)
    put = core._bell.put
    class Bell:
        def put(self, _):
            if not is_collected:
                collect()
            put(None)
        get = core._bell.get
    core._bell = Bell()
    core._committed(1)
elif when == "the program ends at once":
    collect()
    sys.exit()
assert wait_for(lambda: is_collected and core._is_closed), "never closed"
assert records(own)[-1]["event"] == "audit.close"
"""

MOMENTS = [
    *("another log is opened", "the same log is opened", "its records are written", "its own thread seals"),
    *("its own thread is woken", "the program ends at once", "the program ends without a collection"),
]


@pytest.mark.parametrize("when", MOMENTS)
def test_a_log_in_a_cycle_is_closed_whenever_it_is_collected(tmp_path, when):
    """The collector comes while its thread holds the lock that closing needs: nothing waits for itself for ever."""
    program = PROGRAM
    if when.endswith("without a collection"):
        program = program.split("if when ==")[0]
    place = Path(__file__).parent
    command = [sys.executable, "-c", program, str(tmp_path / "own"), str(tmp_path / "other"), when]
    command.append(str(tmp_path / "witness"))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": f"{place}:{Path.cwd()}"}
    )
    assert done.returncode == 0, done.stderr
    assert [record["event"] for record in records(tmp_path / "own")].count("audit.close") == 1
    assert verify_log(tmp_path / "own", [tmp_path / "witness"]).verdict is Verdict.VALID


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which files are open")
def test_a_log_in_use_for_long_holds_no_more_files_open_and_a_closed_one_none(folders):
    """Nothing that comes with each record, seal, key or segment is left open: a process may open a thousand."""
    log, witness = folders

    def held():
        paths = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself
                paths.append(os.readlink(f"/proc/self/fd/{name}"))
        return sorted(path for path in paths if Path(path).is_relative_to(log.parent))

    never = {"checkpoint_seconds": 1e6, "heartbeat_seconds": 1e6, "checkpoint_records": 10**6}
    counts = set()
    with DurableLog(
        log, [witness], options=LogOptions(segment_bytes=900, epochs=2, epoch_seconds=0, **never)
    ) as durable:
        for number in range(9):
            call(durable, number)
            durable.seal()
            counts.add(len(held()))

    assert len(list((log / "segments").iterdir())) > 5
    assert max(counts) <= 2  # the segment in use, and the first, whose lock says that the writer lives
    assert held() == []


def test_a_log_is_closed_once_however_many_close_it(folders):
    """Eight threads close it at once; when any of them comes back, the last checkpoint is on disk."""
    log, witness = folders
    durable = DurableLog(log, [witness])
    call(durable, 1)
    begin = threading.Barrier(8)

    def close(_):
        begin.wait()
        durable.close()
        return verify_log(log, [witness]).verdict

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(close, range(8))) == [Verdict.VALID] * 8
    assert [record["event"] for record in records(log)].count("audit.close") == 1


def test_a_log_that_is_closed_while_threads_write_is_valid(tmp_path):
    """No record comes behind the last one, which names exactly the decisions that have no outcome."""
    for number in range(10):
        log, witness = tmp_path / f"log{number}", tmp_path / f"witness{number}"
        durable = DurableLog(log, [witness])
        promised = []

        def write(thread, durable=durable, promised=promised):
            with contextlib.suppress(AuditUnavailable):
                for k in range(100_000):
                    decision = f"{thread}-{k}"
                    for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
                        durable.append(event, {"decision_id": decision}, decision=decision, **place)
                        promised.append((event, decision))

        with ThreadPoolExecutor(6) as pool, contextlib.closing(durable):
            written = pool.map(write, range(6))
            assert wait_for(lambda promised=promised, least=number * 5: len(promised) > least)
        list(written)

        assert verify_log(log, [witness]).verdict is Verdict.VALID
        *written, last = records(log)
        found = [(r["event"], r["decision_id"]) for r in written if r["event"].startswith("guard.")]
        assert sorted(found) == sorted(promised)
        done = {decision for event, decision in found if event == "guard.outcome"}
        assert (last["event"], set(last["open"])) == ("audit.close", {decision for _, decision in found} - done)


def test_a_log_whose_thread_cannot_start_is_refused(folders, monkeypatch):
    """No guard runs on a log that nobody seals, and the next process takes its writer for dead."""
    log, witness = folders

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(AuditUnavailable, match="cannot start"):
            DurableLog(log, [witness])
    DurableLog(log, [witness]).close()
    assert "audit.recovery" in [record["event"] for record in records(log)]
    assert verify_log(log, [witness]).verdict is Verdict.VALID


def test_a_process_of_multiprocessing_closes_its_log_as_it_ends(folders):
    """Forked or started anew, for `atexit` does not run there; what its program writes last is in it."""
    log, witness = folders
    program = """
import multiprocessing, sys
from multiprocessing.util import Finalize
from pathlib import Path
from logs import call
from apl_guard.audit.durable import DurableLog

def work(log, witness, number):
    durable = DurableLog(log, [witness])
    call(durable, number)
    Finalize(None, call, (durable, number + 1), exitpriority=0)

if __name__ == "__main__":
    log, witness = map(Path, sys.argv[1:])
    durable = DurableLog(log, [witness])
    for number, method in ((10, "fork"), (20, "spawn")):
        process = multiprocessing.get_context(method).Process(target=work, args=(log, witness, number))
        process.start()
        process.join()
    call(durable, 30)
"""
    (folders[0].parent / "program.py").write_text(program)
    place = [str(Path(__file__).parent), str(Path.cwd())]
    subprocess.run(
        [sys.executable, str(folders[0].parent / "program.py"), str(log), str(witness)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(place)},
        check=True,
        timeout=120,
    )

    found = records(log)
    ended = [r["decision_id"][-2:] for r in found if r["event"] == "guard.outcome"]
    assert sorted(ended) == ["0a", "0b", "14", "15", "1e"]
    assert [r["open"] for r in found if r["event"] == "audit.close"] == [[], [], []]
    assert [r["event"] for r in found if r["event"] == "audit.recovery"] == []
    report = verify_log(log, [witness])
    assert (report.verdict, report.records) == (Verdict.VALID, report.witnessed)
