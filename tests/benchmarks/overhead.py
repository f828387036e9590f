"""What the guard adds to a call: python -m tests.benchmarks.overhead [--seconds 3] [--peer PYTHON] [--pause 50]

The whole guard, in front of a backend that answers at once: a policy with a list of names, the prefix, decision and
outcome on record, metrics. Once with records to memory, once to a durable log with a witness. At 1, 16 and 64 callers,
and with as many in two processes that write to one log, as a service with two workers does: threads of one process
share one core for their Python.

Beside it in the same run NeMo Guardrails with a pattern that bans a name and no LLM, where `--peer` names the Python of
an environment that has it. It answers less: it lets a prompt pass or not, without prefix, record or metrics.

    python3 -m venv /tmp/peer && /tmp/peer/bin/pip install nemoguardrails==0.24.1
    python -m tests.benchmarks.overhead --peer /tmp/peer/bin/python

With `--pause MS` one caller waits that long between calls, as a service does while it draws: the processor has then
forgotten the guard, and takes longer for the same work.

Ratios are what counts; the times are those of this machine and its load.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import structlog
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

import instant

from apl_guard import Guard, Policy, backend
from apl_guard.metrics import Metrics, Stage
from apl_guard.prefix import Prefix

CALLERS = (1, 16, 64)
PROMPT = "a photo of a lighthouse keeper in a red shirt, standing in the rain at night, 35mm, highly detailed"
SPEC = {
    "names": [{"id": "protected", "people": [{"name": "Mara Voss"}]}],
    "rules": [
        {"id": "prefix", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
        {"id": "people", "when": {"channels": ["prompt"], "names": ["protected"]}, "then": {"action": "block"}},
    ],
}
HEAD = f"{'':<56}{'callers':>8}{'calls/s':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'p50 ratio':>11}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--peer", help="a Python that has nemoguardrails")
    parser.add_argument("--pause", type=float, metavar="MS", help="let one caller wait between calls, and nothing else")
    parser.add_argument(
        "--profile", action="store_true", help="print where the time goes by function, and nothing else"
    )
    parser.add_argument("--part", nargs=2, metavar=("FOLDER", "CALLERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    backend._BUILT_IN["instant"] = "instant:Adapter"
    if options.part:
        _part(Path(options.part[0]), int(options.part[1]), options.seconds)
        return
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} processors, load {load}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if options.profile:
            _profile(_guard(None)[0])
            return
        durable = "apl-guard, durable log with a witness"
        arms = {"apl-guard, records to memory": _guard(None), durable: _guard(Path(folder))}
        print(HEAD)
        if options.pause:
            for name, (guard, _) in arms.items():
                times = _times(lambda guard=guard: guard(PROMPT), 1, options.seconds, options.pause / 1000)
                _print(name, 1, figures := _figures(times, options.seconds), figures["p50"])
            return
        for callers in CALLERS:
            first = None
            for name, (guard, _) in arms.items():
                figures = _figures(_times(lambda guard=guard: guard(PROMPT), callers, options.seconds), options.seconds)
                first = first or figures["p50"]
                _print(name, callers, figures, first)
            if callers > 1:
                _print(
                    f"{durable}, two processes", callers, _in_two(Path(folder), callers, options.seconds), first or 1
                )
            if options.peer:
                _print("NeMo Guardrails, one pattern, no LLM", callers, _peer(options, callers), first or 1)
        for name, (guard, registry) in arms.items():
            print(f"\n{name}: median by stage, one caller")
            _stages(guard, registry, options.seconds)


def _guard(folder: Path | None) -> tuple[Guard, CollectorRegistry]:
    kept: deque[object] = deque(maxlen=1000)  # more would time the garbage collector

    def keep(_: object, __: str, event: dict[str, object]) -> dict[str, object]:
        kept.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    metadata = {"name": "benchmark", "version": 1}
    policy = Policy.model_validate({"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": metadata, "spec": SPEC})
    registry = CollectorRegistry()
    places = {} if folder is None else {"audit": folder / "log", "audit_witness": folder / "witness"}
    prefix = Prefix.load("minifaces")
    return Guard(instant.Pipe(), policy, prefix=prefix, metrics_registry=registry, **places), registry


def _times(call, callers: int, seconds: float, pause: float = 0.0) -> list[float]:  # type: ignore[no-untyped-def]
    """Seconds of each call, of all callers, who wait between calls."""
    for _ in range(20):
        call()
    times: list[list[float]] = [[] for _ in range(callers)]
    end = time.perf_counter() + seconds

    def run(own: list[float]) -> None:
        while (began := time.perf_counter()) < end:
            if pause:
                time.sleep(pause)
                began = time.perf_counter()
            call()
            own.append(time.perf_counter() - began)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(run, times))
    return [each for own in times for each in own]


def _in_two(folder: Path, callers: int, seconds: float) -> dict[str, float]:
    """The figures of callers of whom each half is in a process of its own."""
    own = [sys.executable, "-m", "tests.benchmarks.overhead", "--seconds", str(seconds)]
    command = [*own, "--part", str(folder), str(callers // 2)]
    parts = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for part in parts:
        assert part.stdout is not None
        part.stdout.readline()  # it is ready
    for part in parts:
        assert part.stdin is not None
        part.stdin.write("go\n")
        part.stdin.flush()
    times = [each for part in parts for each in json.loads(part.communicate()[0])]
    return _figures(times, seconds)


def _part(folder: Path, callers: int, seconds: float) -> None:
    """One of two processes: its times, as JSON."""
    guard, _ = _guard(folder)
    guard(PROMPT)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(_times(lambda: guard(PROMPT), callers, seconds)))


def _figures(times: list[float], seconds: float) -> dict[str, float]:
    ordered = sorted(times)
    quantiles = {f"p{q}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}
    return {"rate": len(ordered) / seconds, **quantiles}


def _print(name: str, callers: int, figures: dict[str, float], first: float) -> None:
    values = "".join(f"{figures[key]:>10.{0 if key == 'rate' else 3}f}" for key in ("rate", "p50", "p95", "p99"))
    print(f"{name:<56}{callers:>8}{values}{figures['p50'] / first:>11.1f}", flush=True)


def _stages(guard: Guard, registry: CollectorRegistry, seconds: float) -> None:
    spent: dict[str, list[float]] = {stage.value: [] for stage in Stage}
    metrics = Metrics.on(registry)
    observe = metrics.spent

    def keep(stage: Stage, name: str, took: float) -> None:
        spent[stage.value].append(took)
        observe(stage, name, took)

    metrics.spent = keep  # type: ignore[method-assign]
    whole = median(_times(lambda: guard(PROMPT), 1, seconds))
    found = {stage: median(times) for stage, times in spent.items() if times}
    found["the rest: metrics, objects"] = whole - sum(found.values())
    for stage, took in found.items():
        print(f"  {stage:<30}{1e6 * took:>10.0f} µs{100 * took / whole:>7.0f} %")


def _profile(guard: Guard) -> None:
    guard(PROMPT)
    with cProfile.Profile() as profile:
        for _ in range(2000):
            guard(PROMPT)
    pstats.Stats(profile).sort_stats("tottime").print_stats(35)


PEER = '''
import asyncio, json, sys, time
from nemoguardrails import LLMRails, RailsConfig

prompt, callers, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
config = RailsConfig.from_content(yaml_content="""
models: []
rails:
  config:
    regex_detection:
      input: {patterns: ["\\\\\\\\bMara Voss\\\\\\\\b"], case_insensitive: true}
  input: {flows: [regex check input]}
""")
rails = LLMRails(config)


async def check(text):
    answer = await rails.generate_async(messages=[{"role": "user", "content": text}], options={"rails": ["input"]})
    return answer.response[0]["content"] == text


async def caller(end, times):
    while (began := time.perf_counter()) < end:
        await check(prompt)
        times.append(time.perf_counter() - began)


async def main():
    assert await check(prompt) and not await check("a photo of Mara Voss")
    times = []
    end = time.perf_counter() + seconds
    await asyncio.gather(*(caller(end, times) for _ in range(callers)))
    print(json.dumps(times))


asyncio.run(main())
'''


def _peer(options: argparse.Namespace, callers: int) -> dict[str, float]:
    seconds = max(options.seconds, callers / 4)  # so slow that every caller has its turn
    command = [options.peer, "-c", PEER, PROMPT, str(callers), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return _figures(json.loads(done.stdout.splitlines()[-1]), seconds)


if __name__ == "__main__":
    main()
