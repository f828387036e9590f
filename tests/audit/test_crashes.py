"""Whatever dies, fails or fills up: no record that was promised is lost, and the log says what happened."""

import json
import random
import re
import shutil

import pytest
from logs import TORTURE, call, in_log, program, records

from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.reading import find_decision
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.errors import InvalidInput

KILLS = 1000 if TORTURE else 40
FAULTS = None if TORTURE else 40
# What a process asks of the file system. The result of closing a file that was synced matters to nobody.
CALLS = [
    *("openat", "write", "fdatasync", "fsync", "flock", "read", "lseek", "newfstatat", "mkdir", "rename", "link"),
    *("unlink", "pwrite64", "pread64", "getdents64", "chmod", "close", "access", "ftruncate", "truncate"),
]
ERRORS = ["error=EIO", "error=ENOSPC", "error=EINTR", "signal=KILL"]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")


def test_nothing_promised_is_lost_when_processes_are_killed(folders):
    """SIGKILL at random times, many times; the next process goes on, and in the end all of it verifies."""
    log, witness = folders
    found = program("rounds", log, witness, KILLS, 7)
    assert found.returncode == 0, found.stderr
    promised = found.stdout.splitlines()
    assert len(promised) > KILLS, "the children hardly wrote anything"

    assert verify_log(log, [witness]).verdict in {Verdict.VALID, Verdict.TORN}
    DurableLog(log, [witness]).close()
    report = verify_log(log, [witness])

    assert report.verdict == Verdict.VALID, report.findings
    assert report.records == report.witnessed
    assert set(promised) <= set(in_log(log))
    # A decision without an outcome is closed as unknown, never as allowed.
    recoveries = [r for r in records(log) if r["event"] == "audit.recovery"]
    assert len(recoveries) >= KILLS / 2
    assert {r["result"] for r in recoveries} == {"unknown"}
    decided, ended = (
        {line.split()[1] for line in in_log(log) if line.startswith(f"guard.{event} ")}
        for event in ("decision", "outcome")
    )
    # One that is killed before it has sealed its recovery leaves it to the next, which records it again.
    assert {id for r in recoveries for id in r["orphans"]} == decided - ended


@pytest.mark.parametrize("segment_bytes", [1, 1 << 20], ids=["each record in a file of its own", "one file"])
def test_what_a_dead_process_left_open_is_named_by_the_next(folders, segment_bytes):
    """Each decision without an outcome, and no other; whoever asks for one of them finds that."""
    log, witness = folders
    durable = DurableLog(log, [witness], options=LogOptions(segment_bytes=segment_bytes))
    call(durable, 1)
    for id in ("open-2", "refused-3", "open-4"):
        durable.append("guard.decision", {"decision_id": id}, decision=id, opens=True)
    durable.refuse("guard.outcome", "refused-3")
    call(durable, 5)
    durable.leave()  # as if its process had died

    DurableLog(log, [witness]).close()

    (recovery,) = [r for r in records(log) if r["event"] == "audit.recovery"]
    assert (recovery["orphans"], recovery["result"]) == (["open-2", "open-4"], "unknown")
    assert [found.record.fields["event"] for found in find_decision(log, "open-4")] == [
        "guard.decision",
        "audit.recovery",
    ]
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_many_processes_lose_nothing_and_repeat_nothing(folders):
    """Eight processes of four threads."""
    log, witness = folders
    calls = 1000 if TORTURE else 40

    found = program("crowd", log, witness, 8, calls)

    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [0] * 8
    expected = [
        f"guard.{event} p{process}-{thread}-{number}"
        for process in range(8)
        for thread in range(4)
        for number in range(calls)
        for event in ("decision", "outcome")
    ]
    assert sorted(in_log(log)) == sorted(expected)
    report = verify_log(log, [witness])
    assert (report.verdict, report.writers, report.records) == (Verdict.VALID, 8, report.witnessed)


def test_a_process_that_forks_while_it_writes(folders):
    """Each child opens a row of its own; nobody waits for a lock that a thread of the parent held."""
    log, witness = folders

    found = program("fork", log, witness)

    assert json.loads(found.stdout) == [0] * 4, found.stderr
    expected = {f"parent{n}-{i}" for n in range(3) for i in range(60)}
    expected |= {f"child{c}{n}-{i}" for c in range(4) for n in range(3) for i in range(10)}
    assert sorted(in_log(log)) == sorted(
        f"guard.{event} {name}" for name in expected for event in ("decision", "outcome")
    )
    report = verify_log(log, [witness])
    assert (report.verdict, report.writers, report.records) == (Verdict.VALID, 5, report.witnessed)


@pytest.fixture(scope="module")
def system_calls(tmp_path_factory):
    """(call, n): the n-th such call of the program is one that the log makes."""
    folder = tmp_path_factory.mktemp("trace")
    found = program("faults", folder, ",".join(f"?{call}" for call in CALLS))
    if "cannot trace" in found.stderr:
        pytest.skip(found.stderr)
    assert found.stdout.strip() == "0", found.stderr
    counts, places, inside = dict.fromkeys(CALLS, 0), [], False
    for line in (folder / "trace").read_text(errors="replace").splitlines():
        name = re.match(r"(\w+)\(", line)
        if name is None:
            continue
        counts[name[1]] = counts.get(name[1], 0) + 1
        if "/the-log-begins-here" in line:
            inside = True
        elif "/the-log-ends-here" in line:
            break
        elif inside:
            places.append((name[1], counts[name[1]]))
    return places


@needs_strace
def test_every_call_to_the_file_system_may_fail_once(system_calls, tmp_path):
    """EIO, ENOSPC, EINTR or death at any of them: the log is whole or torn, and goes on."""
    faults = [(call, n, error) for call, n in system_calls for error in ERRORS]
    total = len(faults)
    if FAULTS is not None:
        faults = random.Random(11).sample(faults, FAULTS)
    given = "".join(f"{number} {call} {n} {error}\n" for number, (call, n, error) in enumerate(faults))
    found = program("faults", tmp_path, "", given=given)
    ends = [int(line.split()[1]) for line in found.stdout.splitlines()]
    wrong = []
    for number, (fault, end) in enumerate(zip(faults, ends, strict=True)):
        folder = tmp_path / str(number)
        said = (folder / "said").read_text().splitlines() if (folder / "said").exists() else []
        promised = [line.removeprefix("promised ") for line in said if line.startswith("promised ")]
        problem = judge(folder / "log", folder / "witness", promised)
        if end not in (0, -9) or problem:
            wrong.append((*fault, end, problem))

    assert wrong == []
    assert "Traceback" not in found.stderr, found.stderr
    assert total > 400
    print(f"{len(faults)} of {total} faults")


def judge(log, witness, promised):
    """What is wrong with a log after a fault; None if nothing is."""
    try:
        report = verify_log(log, [witness] if witness.exists() else [])
    except (InvalidInput, OSError) as error:
        return str(error) if promised else None  # it did not come to be
    if report.verdict == Verdict.TAMPERED or (report.verdict == Verdict.UNVERIFIABLE and promised):
        return str(report)
    if not set(promised) <= set(in_log(log)):
        return f"lost: {set(promised) - set(in_log(log))}"
    DurableLog(log, [witness]).close()
    report = verify_log(log, [witness])
    if report.verdict != Verdict.VALID or not set(promised) <= set(in_log(log)):
        return f"after the next start: {report}"
    return None
