"""A log with everything in it."""

import os

from apl_guard.audit.durable import DurableLog, LogOptions

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
