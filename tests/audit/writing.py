"""A program that writes to a log and says which records it was promised. Tests kill, starve and trip it.

writing.py rounds LOG WITNESS ROUNDS SEED      children that are killed at random times
writing.py stops LOG WITNESS ROUNDS SEED       children that a signal stops at random times, whose handler raises
writing.py crowd LOG WITNESS PROCESSES CALLS   processes of four threads each, all at once
writing.py steps LOG WITNESS ACKS              every kind of step once, in one thread, for a tracer
"""

import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from apl_guard.audit import seal_key
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.errors import AuditUnavailable


def write(durable, name, calls, promised=lambda record: None):
    """Write calls; each promised record is told at once."""
    for number in calls:
        decision = f"{name}-{number}"
        for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
            durable.append(event, {"decision_id": decision}, decision=decision, **place)
            promised(f"{event} {decision}\n".encode())


def write_on(durable, pipe, name):
    """Write calls without end."""
    write(durable, name, itertools.count(), partial(os.write, pipe))


def forked(work):
    """Do some work in a child, which ends with 0 if it could; the child's id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child):
    """How a child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_until_killed(log, witness, pipe, name):
    """Four threads."""
    options = LogOptions(
        checkpoint_records=16, checkpoint_seconds=0.02, segment_bytes=6000, epochs=8, epoch_seconds=0.2
    )
    durable = DurableLog(log, [witness], options=options)
    for thread in range(4):
        threading.Thread(target=write_on, args=(durable, pipe, f"{name}-{thread}"), daemon=True).start()
    time.sleep(60)
    os._exit(1)  # nobody comes here


def write_until_stopped(log, witness, pipe, name):
    """Four threads, of a program that ends as programs do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_records=16, segment_bytes=6000))
    threading.excepthook = lambda _: None  # the log is closed under them
    for thread in range(3):
        threading.Thread(target=write_on, args=(durable, pipe, f"{name}-{thread}"), daemon=True).start()
    write_on(durable, pipe, f"{name}-main")


def rounds(work, by, log, witness, count, seed):
    """End as many children by a signal at a random time. Prints every record that one of them was promised."""
    chance = random.Random(seed)
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            work(log, witness, writing, f"r{number}")
        os.close(writing)
        if number % 4 or by != signal.SIGKILL:  # every fourth may die while it opens the log, others while they write
            select.select([reading], [], [], 30)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, by)
        with os.fdopen(reading) as stream:
            promised = stream.read()
        if (code := ended(child)) != (143 if by == signal.SIGTERM else -by):
            sys.exit(f"round {number}: the child ended with {code}")
        # The pipe cuts nothing off: a line goes out in one write.
        sys.stdout.write(promised)
        sys.stdout.flush()


def crowd(log, witness, processes, calls):
    """Start processes at once, each with four threads, and let them end."""

    def work(process):
        durable = DurableLog(log, [witness], options=LogOptions(segment_bytes=50_000))
        with durable, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda thread: write(durable, f"p{process}-{thread}", range(calls)), range(4)))

    children = [forked(partial(work, process)) for process in range(processes)]
    print(json.dumps([ended(child) for child in children]))


def fork(log, witness):
    """A process forks while its threads write and its checkpoints are made; parent and child both go on."""
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_records=4, checkpoint_seconds=0.001))

    def work(name):
        with durable, ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda thread: write(durable, f"{name}{thread}", range(10)), range(3)))

    with durable, ThreadPoolExecutor(3) as pool:
        written = [pool.submit(write, durable, f"parent{thread}", range(60)) for thread in range(3)]
        children = [forked(partial(work, f"child{number}")) for number in range(4)]
        for each in written:
            each.result()
        codes = [ended(child) for child in children]
    print(json.dumps(codes))


def steps(folder):
    """Open, write, seal, rotate, change keys, write on, close. What it says goes out by a call of its own."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    options = LogOptions(checkpoint_seconds=1e6, heartbeat_seconds=1e6, segment_bytes=900, epochs=2, epoch_seconds=0)

    def say(text):
        os.writev(said, [f"{text}\n".encode()])

    os.access("/the-log-begins-here", os.F_OK)
    try:
        durable = DurableLog(folder / "log", [folder / "witness"], options=options)
    except AuditUnavailable as error:
        return say(f"refused {error}")
    for number in range(4):
        decision = f"s{number}"
        for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
            try:
                durable.append(event, {"decision_id": decision}, decision=decision, **place)
                say(f"promised {event} {decision}")
            except AuditUnavailable as error:
                say(f"refused {error}")
        try:
            durable.seal()
        except AuditUnavailable as error:
            say(f"refused {error}")
    durable.close()
    os.access("/the-log-ends-here", os.F_OK)
    return None


def traced(folder, tracer):
    """Run the steps in a child that a tracer looks at; how it ended."""
    reading, writing = os.pipe()
    folder.mkdir()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            select.select([reading], [], [])  # no call that faults are counted by, for the tracer may come before it
            signal.alarm(120)  # whoever waits for ever ends as a fault that is named, not with the whole test
            steps(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    strace = subprocess.Popen(["strace", "-p", str(child), *tracer], stderr=subprocess.PIPE, text=True)
    attached = strace.stderr.readline()
    if "attached" not in attached:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sys.exit(f"cannot trace: {attached}")
    os.write(writing, b"x")
    _, status = os.waitpid(child, 0)
    strace.communicate()
    os.close(reading)
    os.close(writing)
    return os.waitstatus_to_exitcode(status)


def faults(folder, trace):
    """Each line of the input is one fault. Without any, the calls of a run without faults are listed."""
    seal_key.public_keys(bytes(32), 1)  # so that the libraries are loaded before the tracer looks
    seal_key.signature_fits(bytes(32), b"", bytes(64))
    if trace:
        print(traced(folder / "none", ["-o", str(folder / "trace"), "-e", f"trace={trace}"]))
        return
    for line in sys.stdin:
        number, call, n, error = line.split()
        inject = ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{error}:when={n}"]
        print(number, traced(folder / number, inject), flush=True)


if __name__ == "__main__":
    what, log, witness, *rest = sys.argv[1:]
    match what:
        case "rounds":
            rounds(write_until_killed, signal.SIGKILL, Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "stops":
            rounds(write_until_stopped, signal.SIGTERM, Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "crowd":
            crowd(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "fork":
            fork(Path(log), Path(witness))
        case "faults":
            faults(Path(log), witness)
