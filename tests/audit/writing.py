"""A program that writes to a log and says which records it was promised. Tests kill, starve and trip it.

writing.py rounds LOG WITNESS ROUNDS SEED      children that are killed at random times
writing.py crowd LOG WITNESS PROCESSES CALLS   processes of four threads each, all at once
writing.py steps LOG WITNESS ACKS              every kind of step once, in one thread, for a tracer
"""

import json
import os
import random
import select
import signal
import sys
import threading
import time
from pathlib import Path

from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.errors import AuditUnavailable


def write_until_killed(log, witness, pipe, name):
    """Four threads; each promised record is told at once."""
    options = LogOptions(
        checkpoint_records=16, checkpoint_seconds=0.02, segment_bytes=6000, epochs=8, epoch_seconds=0.2
    )
    durable = DurableLog(log, [witness], options=options)

    def write(thread):
        number = 0
        while True:
            decision = f"{name}-{thread}-{number}"
            for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
                durable.append(event, {"decision_id": decision}, decision=decision, **place)
                os.write(pipe, f"{event} {decision}\n".encode())
            number += 1

    for thread in range(4):
        threading.Thread(target=write, args=(thread,), daemon=True).start()
    time.sleep(60)


def rounds(log, witness, count, seed):
    """Kill as many children. Prints every record that one of them was promised."""
    chance = random.Random(seed)
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                write_until_killed(log, witness, writing, f"r{number}")
            finally:
                os._exit(1)  # nobody comes here but after an error
        os.close(writing)
        if number % 4:  # every fourth may die while it opens the log, the others while they write
            select.select([reading], [], [], 30)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        with os.fdopen(reading) as stream:
            promised = stream.read()
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"round {number}: the child ended by itself")
        # The pipe cuts nothing off: a line goes out in one write.
        sys.stdout.write(promised)


def crowd(log, witness, processes, calls):
    """Start processes at once, each with four threads, and let them end."""
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                durable = DurableLog(log, [witness], options=LogOptions(segment_bytes=50_000))

                def write(thread, durable=durable, process=process):
                    for number in range(calls):
                        decision = f"p{process}-{thread}-{number}"
                        fields = {"decision_id": decision}
                        durable.append("guard.decision", fields, decision=decision, opens=True)
                        durable.append("guard.outcome", fields, decision=decision, closes=True)

                threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                durable.close()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes))


def steps(log, witness, acks):
    """Open, write, seal, rotate, change keys, write on, close. Promises go out by a system call of their own."""
    promised = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    options = LogOptions(checkpoint_seconds=1e6, heartbeat_seconds=1e6, segment_bytes=900, epochs=2, epoch_seconds=0)
    os.access("/the-log-begins-here", os.F_OK)
    try:
        durable = DurableLog(log, [witness], options=options)
    except AuditUnavailable as error:
        print(error)
        return
    for number in range(4):
        decision = f"s{number}"
        for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
            try:
                durable.append(event, {"decision_id": decision}, decision=decision, **place)
            except AuditUnavailable as error:
                print(error)
                continue
            os.writev(promised, [f"{event} {decision}\n".encode()])
        try:
            durable.seal()
        except AuditUnavailable as error:
            print(error)
    durable.close()
    os.access("/the-log-ends-here", os.F_OK)


if __name__ == "__main__":
    what, log, witness, *rest = sys.argv[1:]
    match what:
        case "rounds":
            rounds(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "crowd":
            crowd(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "steps":
            steps(Path(log), Path(witness), rest[0])
