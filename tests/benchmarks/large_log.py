"""What a large audit log costs those who read it: python -m tests.benchmarks.large_log [--calls 100000] [--writers 500]

A guard in front of a backend that answers at once writes a log as a service does, in one long row and many short ones.
Then it is verified, asked, and a receipt made, as `apl-guard audit` does it; beside each time, how many times that of
reading the same files line by line it is.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

import instant

from apl_guard import Guard, backend
from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.index import Index
from apl_guard.audit.index_file import INDEX_FILE
from apl_guard.audit.question import Question
from apl_guard.audit.receipt import prove
from apl_guard.audit.verify import verify_log
from apl_guard.audit.verify_index import check_index
from apl_guard.prefix import Prefix


def main() -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000, help="of the long row")
    parser.add_argument("--writers", type=int, default=500, help="short rows, of one call each")
    parser.add_argument("--folder", type=Path, help="where the log goes for as long as it takes, such as /dev/shm")
    options = parser.parse_args()
    backend._BUILT_IN["instant"] = "instant:Adapter"
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        log, witness = Path(root) / "log", Path(root) / "witness"
        _write(log, witness, options.calls)
        for _ in range(options.writers):
            _write(log, witness, 1)
        _measure(log, witness)


def _write(log: Path, witness: Path, calls: int) -> None:
    prefix = Prefix.load("minifaces")
    with Guard(
        instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness, metrics_registry=CollectorRegistry()
    ) as guard:
        for number in range(calls):
            with guard.context(tenant=f"tenant {number % 50}", subject=f"account-{number % 1000}"):
                guard(f"a photo of a lighthouse, number {number}")


def _measure(log: Path, witness: Path) -> None:
    segments = sorted((log / SEGMENTS).iterdir())
    size = sum(path.stat().st_size for path in segments)
    lines, plain = _timed(lambda: sum(1 for path in segments for _ in path.open("rb")))
    print(f"{lines} records of {size / lines:.0f} bytes, {len(segments)} segments")

    def say(what: str, seconds: float, more: str = "") -> None:
        print(f"{what:<44}{seconds:>9.3f} s{1e6 * seconds / lines:>8.1f} µs a record{seconds / plain:>9.1f} x{more}")

    say("reading all lines", plain)
    report, seconds = _timed(lambda: verify_log(log, [witness]))
    say("verify", seconds, f"  {report.verdict}")
    with Index(log) as index:
        _, seconds = _timed(index.update)
        indexed = (log / INDEX_FILE).stat().st_size
        say("index, made", seconds, f"  {indexed / size:.1f} times the log")
        say("index, brought up to date", _timed(index.update)[1])
        newest = Question({"event": "guard.decision"}, limit=1)
        ((decision,), seconds) = _timed(lambda: list(index.ask(newest)))
        say("the newest decision", seconds)
        say("calls by tenant", _timed(lambda: list(index.ask(Question({}, group_by=["tenant"]))))[1])
        say("calls of a subject", _timed(lambda: list(index.ask(Question({"subject": decision["subject"]}))))[1])
        say("decisions without outcome", _timed(index.open_decisions)[1])
    say("index, held against the log", _timed(lambda: check_index(log, report))[1], f"  {report.verdict}")
    say("receipt for a decision", _timed(lambda: prove(log, decision["decision_id"]))[1])
    print(f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


T = TypeVar("T")


def _timed(what: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    answer = what()
    return answer, time.perf_counter() - began


if __name__ == "__main__":
    main()
