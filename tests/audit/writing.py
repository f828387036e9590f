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
from pathlib import Path

from apl_guard.audit import seal_key
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.errors import AuditUnavailable


def write_on(durable, pipe, name):
    """Write calls without end; each promised record is told at once."""
    for number in itertools.count():
        decision = f"{name}-{number}"
        for event, place in (("guard.decision", {"opens": True}), ("guard.outcome", {"closes": True})):
            durable.append(event, {"decision_id": decision}, decision=decision, **place)
            os.write(pipe, f"{event} {decision}\n".encode())


def write_until_killed(log, witness, pipe, name):
    """Four threads."""
    options = LogOptions(
        checkpoint_records=16, checkpoint_seconds=0.02, segment_bytes=6000, epochs=8, epoch_seconds=0.2
    )
    durable = DurableLog(log, [witness], options=options)
    for thread in range(4):
        threading.Thread(target=write_on, args=(durable, pipe, f"{name}-{thread}"), daemon=True).start()
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


def stops(log, witness, count, seed):
    """Stop as many children, which end as programs do. Prints every record that one of them was promised."""
    chance = random.Random(seed)
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            durable = DurableLog(log, [witness], options=LogOptions(checkpoint_records=16, segment_bytes=6000))

            threading.excepthook = lambda _: None  # the log is closed under them
            for thread in range(3):
                threading.Thread(target=write_on, args=(durable, writing, f"s{number}-{thread}"), daemon=True).start()
            write_on(durable, writing, f"s{number}-main")
        os.close(writing)
        select.select([reading], [], [], 30)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGTERM)
        with os.fdopen(reading) as stream:
            promised = stream.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 143:
            sys.exit(f"round {number}: the child ended with {status}")
        sys.stdout.write(promised)
        sys.stdout.flush()


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


def fork(log, witness):
    """A process forks while its threads write and its checkpoints are made; parent and child both go on."""
    durable = DurableLog(log, [witness], options=LogOptions(checkpoint_records=4, checkpoint_seconds=0.001))

    def write(name, count):
        for number in range(count):
            fields = {"decision_id": f"{name}-{number}"}
            durable.append("guard.decision", fields, decision=fields["decision_id"], opens=True)
            durable.append("guard.outcome", fields, decision=fields["decision_id"], closes=True)

    threads = [threading.Thread(target=write, args=(f"parent{number}", 60)) for number in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                inner = [threading.Thread(target=write, args=(f"child{number}{n}", 10)) for n in range(3)]
                for thread in inner:
                    thread.start()
                for thread in inner:
                    thread.join()
                durable.close()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for thread in threads:
        thread.join()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    durable.close()
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
            rounds(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "stops":
            stops(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "crowd":
            crowd(Path(log), Path(witness), int(rest[0]), int(rest[1]))
        case "fork":
            fork(Path(log), Path(witness))
        case "faults":
            faults(Path(log), witness)
