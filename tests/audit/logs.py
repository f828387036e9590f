"""A log with everything in it, and what is read from one without the help of an index."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.question import COLUMNS
from apl_guard.audit.reading import read_log
from apl_guard.audit.row import Row
from apl_guard.audit.segment_files import writers_in

PROGRAM = Path(__file__).with_name("writing.py")
TORTURE = os.environ.get("APL_GUARD_TORTURE") == "1"
"""Whether `make torture` runs: the same tests, many more rounds."""


def call(log, number):
    """Two records, as of one call of a guard."""
    fields = {"decision_id": f"{number:032x}", "action": "anonymize", "policy": {"name": "p"}}
    log.append("guard.decision", fields, decision=fields["decision_id"], opens=True)
    log.append("guard.outcome", {**fields, "result": "passed"}, decision=fields["decision_id"], closes=True)


def make_log(folder, witness, calls=30, writers=3, **options):
    """A log of several writers, segments, epochs and generations, closed and wholly sealed."""
    options = {"segment_bytes": 4000, "epochs": 4, "epoch_seconds": 0} | options
    number = 0
    for _ in range(writers):
        log = DurableLog(folder, [witness], options=LogOptions(**options))
        for _ in range(calls):
            call(log, number)
            number += 1
            if number % 7 == 0:
                log.seal()
        log.close()


def records(log):
    """All records that count, in the order of their writers."""
    segments = log / "segments"
    return [json.loads(line.content) for writer, n in writers_in(segments).items() for line in Row(segments, writer, n)]


def counted(registry):
    """Result → how many calls ended so."""
    samples = next(m.samples for m in registry.collect() if m.name == "apl_guard_outcomes")
    return {s.labels["result"]: int(s.value) for s in samples if s.name.endswith("_total") and s.value}


def wait_for(what):
    """Whether it comes true within some seconds."""
    end = monotonic() + 20
    while monotonic() < end:
        if what():
            return True
        sleep(0.01)
    return False


def expected(log, **conditions):
    """The answer without an index: every record, looked at one by one."""

    def value(fields, name):
        for part in COLUMNS[name][2:].split("."):
            fields = (fields or {}).get(part)
        return fields

    return [f.fields for f in read_log(log) if all(value(f.fields, n) == wanted for n, wanted in conditions.items())]


def program(*arguments, given=None):
    """Run the program of the children; what it said."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=7200, input=given)


def in_log(log):
    """Every record in the segments, as the program says it promised them. Torn lines do not count."""
    found = []
    for path in sorted((log / "segments").iterdir()):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if fields["event"].startswith("guard."):
                found.append(f"{fields['event']} {fields['decision_id']}")
    return found
