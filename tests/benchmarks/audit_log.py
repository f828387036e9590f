"""What a durable record costs: python -m tests.benchmarks.audit_log [--seconds 2] [--folder .] [--slower 2]

First the log alone beside its alternatives, each with lines of the same length on the same disk: a bare write with
fdatasync, SQLite with synchronous=FULL, and Python's logging to a file, which promises nothing. Then the guard in front
of a backend that answers at once, beside two bare appends with fdatasync; for one caller also with the pauses between
them that the guard without a disk would make, for disks answer later to those who pause. Ratios are what counts; the
times are those of this disk and this load. The last column is processor time, which depends least on what else the
machine does.

With `--slower MS` every sync takes so many milliseconds longer, for all that is measured but SQLite: how it would be on
a disk behind a network, or one without a cache that outlasts a power cut.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

import instant

from apl_guard import Guard, backend
from apl_guard.audit import AuditLog, disk
from apl_guard.audit.durable import DurableLog
from apl_guard.prefix import Prefix

PROMPT = "a photo of a man in a red shirt"
LINE = {"decision_id": "0" * 32, "policy": {"name": "anonymize_faces", "digest": "0" * 64}, "text": "0" * 600}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--folder", default=".", help="on the disk to be measured")
    parser.add_argument("--slower", type=float, default=0.0, metavar="MS", help="let each sync take longer by this")
    options = parser.parse_args()
    if options.slower:
        _slow_down(options.slower / 1000)
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        records(root, options.seconds)
        calls(root, options.seconds)
    finally:
        shutil.rmtree(root)


def _slow_down(seconds: float) -> None:
    fast = disk.sync

    def slow(handle: int) -> None:
        fast(handle)
        time.sleep(seconds)

    disk.sync = slow


def records(root: Path, seconds: float) -> None:
    """Records each second, and how long one takes."""
    log = DurableLog(root / "log", [root / "witness"])
    bare = _bare(root / "bare")
    for threads in (1, 16, 64):
        _head(threads, "thread", "records/s")
        times = _measure(lambda: bare(1000), seconds, threads)
        base = len(times) / seconds
        _print("bare write + fdatasync", times, seconds, base)
        _print("audit log", _measure(lambda: log.append("x", LINE, decision=None), seconds, threads), seconds, base)
        _print(
            "SQLite, synchronous=FULL", _measure(_sqlite(root / f"{threads}.sqlite"), seconds, threads), seconds, base
        )
        _print(
            "logging to a file, no sync", _measure(_logging(root / f"{threads}.log"), seconds, threads), seconds, base
        )
    log.close()


def calls(root: Path, seconds: float) -> None:
    """Calls of a guard each second, with two records each."""
    backend._BUILT_IN["instant"] = "instant:Adapter"
    prefix = Prefix.load("minifaces")
    durable = Guard(instant.Pipe(), prefix=prefix, audit=root / "calls", audit_witness=root / "witness")
    memory = Guard(instant.Pipe(), prefix=prefix, audit=AuditLog())
    logging.getLogger("apl_guard.audit").addHandler(_Memory())
    logging.getLogger("apl_guard.audit").setLevel(logging.INFO)
    logging.getLogger("apl_guard.audit").propagate = False
    bare = _bare(root / "two")

    def two() -> None:
        bare(1300)
        bare(650)

    for threads in (1, 16, 64):
        _head(threads, "caller", "calls/s")
        times = _measure(two, seconds, threads)
        base = len(times) / seconds
        _print("two bare appends", times, seconds, base)
        if threads == 1:
            pause = median(_measure(lambda: memory(PROMPT), seconds, 1)) / 2
            times = _measure(partial(_with_pauses, bare, pause), seconds, 1)
            _print("  with the guard's pauses", [each - 2 * pause for each in times], seconds, base)
        _print("guard, durable log", _measure(lambda: durable(PROMPT), seconds, threads), seconds, base)
        _print("guard, records to memory", _measure(lambda: memory(PROMPT), seconds, threads), seconds, base)


def _with_pauses(append: Callable[[int], None], pause: float) -> None:
    for size in (1300, 650):
        _spin(pause)
        append(size)


def _spin(seconds: float) -> None:
    """Be busy so long, as the guard is; a thread that sleeps also wakes late."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class _Memory(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def _bare(path: Path) -> Callable[[int], None]:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lock = threading.Lock()

    def append(size: int) -> None:
        with lock:
            os.write(handle, bytes(size))
            disk.sync(handle)

    return append


def _sqlite(path: Path) -> Callable[[], None]:
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE records (line TEXT)")
    lock = threading.Lock()
    line = "0" * 1000

    def append() -> None:
        with lock:
            database.execute("INSERT INTO records VALUES (?)", [line])

    return append


def _logging(path: Path) -> Callable[[], None]:
    logger = logging.Logger(path.name)
    logger.addHandler(logging.FileHandler(path))
    line = "0" * 1000
    return lambda: logger.info(line)


def _measure(act: Callable[[], object], seconds: float, threads: int) -> list[float]:
    """How long each call took that began within so many seconds, from so many threads."""
    times: list[list[float]] = [[] for _ in range(threads)]
    act()
    end = time.perf_counter() + seconds
    _spent[:] = [time.process_time()]

    def work(mine: list[float]) -> None:
        while (began := time.perf_counter()) < end:
            act()
            mine.append(time.perf_counter() - began)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, times))
    _spent.append(time.process_time())
    return sorted(value for mine in times for value in mine)


_spent: list[float] = []


def _head(threads: int, what: str, rate: str) -> None:
    plural = "s" if threads > 1 else ""
    print(f"\n{f'{threads} {what}{plural}':<32}{rate:>10}{'p50 ms':>9}{'p99 ms':>9}{'to bare':>9}{'CPU ms':>9}")


def _print(name: str, times: list[float], seconds: float, base: float) -> None:
    rate = len(times) / seconds
    p50, p99 = 1000 * median(times), 1000 * times[int(0.99 * (len(times) - 1))]
    cpu = 1000 * (_spent[1] - _spent[0]) / max(len(times), 1)
    print(f"  {name:<30}{rate:>10.0f}{p50:>9.2f}{p99:>9.2f}{rate / base:>8.2f}x{cpu:>9.3f}")


if __name__ == "__main__":
    main()
