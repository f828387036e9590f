"""Metrics of several processes: they add up, outlive a worker, and are in nobody's way where they cannot be kept."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from apl_guard import MetricsUnavailable
from apl_guard.metrics import Metrics

ROOT = Path(__file__).parents[1]

SERVICE = textwrap.dedent(
    """
    import os, signal, sys, urllib.request
    import instant
    from apl_guard import Guard, PolicyBlocked, backend
    from apl_guard.metrics import of_all_processes, serve
    from prometheus_client import multiprocess

    backend._BUILT_IN["instant"] = "instant:Adapter"
    workers = []
    for number in range(3):
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            guards = [Guard(instant.Pipe(), "unsafe_allow_all") for _ in range(2)]  # which count together
            for _ in range(number + 1):
                for guard in guards:
                    guard("a cat")
                    try:
                        guard("a cat", no_such=1)
                    except PolicyBlocked:
                        pass
            if number == 2:  # killed in the middle of a call
                guards[0]._parts.metrics.entered("instant:Pipe", 1)
                os.write(told, b"x")
                signal.pause()
            os.write(told, b"x")
            server = guards[0].serve_metrics(0)
            text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read()
            assert b'apl_guard_outcomes_total{result="passed"}' in text
            os._exit(0)
        os.read(ready, 1)
        workers.append(pid)
    served = serve(of_all_processes(), 0)

    def scrape():
        return urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics").read().decode()

    print(scrape())
    print("----")
    os.kill(workers[2], signal.SIGKILL)
    for pid in workers:
        os.waitpid(pid, 0)
        multiprocess.mark_process_dead(pid)
    print(scrape())
    """
)


def run(code, folder, *arguments):
    """Run a service that counts in this folder."""
    path = [str(ROOT / "tests" / "audit"), *sys.path]
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_several_workers_count_together(tmp_path):
    """Forked as by gunicorn: counters of all add up and outlive the worker, gauges of a killed one go away."""
    done = run(SERVICE, tmp_path)
    assert done.returncode == 0, done.stderr
    alive, dead = done.stdout.split("----")
    for text in (alive, dead):
        for line in (
            'apl_guard_outcomes_total{result="passed"} 12.0',
            'apl_guard_outcomes_total{result="blocked"} 12.0',
            'apl_guard_stage_duration_seconds_count{backend="instant:Pipe",stage="decide"} 24.0',
        ):
            assert line in text.splitlines()
        assert "pid=" not in text
    assert 'apl_guard_in_progress_requests{backend="instant:Pipe"} 1.0' in alive
    assert 'apl_guard_in_progress_requests{backend="instant:Pipe"} 1.0' not in dead
    assert len(re.findall(r"^apl_guard_policy_info", alive, re.MULTILINE)) == 1


def test_the_folder_of_several_workers_must_be_there(tmp_path):
    """Said when the service starts, with the name of the variable."""
    code = (
        "from prometheus_client import CollectorRegistry\n"
        "from apl_guard import MetricsUnavailable\n"
        "from apl_guard.metrics import Metrics\n"
        "try:\n    Metrics.on(CollectorRegistry())\nexcept MetricsUnavailable as error:\n    print(error)"
    )
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "no"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "PROMETHEUS_MULTIPROC_DIR has to name a folder" in done.stdout, done.stderr


def test_the_variable_that_comes_too_late_is_refused(monkeypatch, tmp_path):
    """This process would count alone, and nobody would notice."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(MetricsUnavailable, match="after prometheus_client was imported"):
        Metrics.on(CollectorRegistry())


@pytest.fixture
def small(tmp_path):
    """A real disk, of a few hundred kilobytes."""
    if shutil.which("mount") is None or os.geteuid() != 0 or not hasattr(os, "posix_fallocate"):
        pytest.skip("needs the right to mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


FULL = textwrap.dedent(
    """
    import errno, logging, os, sys
    import instant
    from apl_guard import Guard, MetricsUnavailable, backend

    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("apl_guard").setLevel(logging.ERROR)
    backend._BUILT_IN["instant"] = "instant:Adapter"

    def fill():
        with open(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "ballast"), "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    if "at the start" in sys.argv:
        fill()
        try:
            Guard(instant.Pipe(), "unsafe_allow_all")
        except MetricsUnavailable as error:
            print(error)
    else:
        guard = Guard(instant.Pipe(), "unsafe_allow_all")
        guard("a cat")
        fill()
        if "after a fork" in sys.argv and (pid := os.fork()):
            _, status = os.waitpid(pid, 0)
            sys.exit(os.waitstatus_to_exitcode(status))
        for number in range(300):  # each with a series of its own, so that the files would have to grow
            guard._parts.metrics.introduce(f"backend {number}", "x" * 200 + str(number))
            assert guard("a cat") == "an image"
        print("released")
        sys.stdout.flush()
        os._exit(0)
    """
)


@pytest.mark.parametrize("when", ["at the start", "while it runs", "after a fork"])
def test_a_full_disk_under_the_metrics_ends_no_process(small, when):
    """At the start it is an error that says so; later, images are handed out as the records say."""
    done = run(FULL, small, when)

    assert done.returncode == 0, done.stderr
    if when == "at the start":
        assert "No space left on device; PROMETHEUS_MULTIPROC_DIR has to name a folder" in done.stdout
        assert [path.name for path in small.iterdir()] == ["ballast"]
    else:
        assert done.stdout == "released\n"
        assert "metrics are incomplete: No space left on device" in done.stderr


DAMAGED = textwrap.dedent(
    """
    import logging, os, pathlib
    from prometheus_client import CollectorRegistry, generate_latest
    from apl_guard.metrics import Metrics, of_all_processes

    logging.basicConfig(format="%(message)s")
    Metrics.on(CollectorRegistry()).ended("passed")
    folder = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    (folder / "counter_1.db").write_bytes(b"")
    (folder / "histogram_1.db").write_bytes(b"garbage")
    (folder / "gauge_livesum_1.db").write_bytes(bytes(range(256)) * 16)
    print(generate_latest(of_all_processes()).decode())
    """
)


def test_a_file_that_a_dead_worker_left_damaged_takes_nothing_else_away(tmp_path):
    """The others are served; the log names it and says what to do."""
    done = run(DAMAGED, tmp_path)

    assert done.returncode == 0, done.stderr
    assert 'apl_guard_outcomes_total{result="passed"} 1.0' in done.stdout
    for name in ("counter_1.db", "histogram_1.db", "gauge_livesum_1.db"):
        assert f"{tmp_path / name} is damaged" in done.stderr
    assert "Traceback" not in done.stderr


FORKED = textwrap.dedent(
    """
    import os, sys
    from prometheus_client import CollectorRegistry, Counter, generate_latest
    from apl_guard import Guard, GuardUnavailable
    from apl_guard.metrics import of_all_processes
    from apl_guard.testing import random_prefix, tiny_pipe

    pipe = tiny_pipe()
    guard = Guard(pipe, sys.argv[1], prefix=random_prefix(pipe))
    guard.self_test(num_inference_steps=1)
    requests = Counter("requests", "What the service itself counts.")

    def show():
        lines = generate_latest(of_all_processes()).decode().splitlines()
        names = ("apl_guard_selftest_success{", "apl_guard_config_last_reload_successful{")
        print(*(line.split()[-1] for line in lines if line.startswith(names)))

    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        requests.inc()
        show()
        guard.self_test(num_inference_steps=1)
        show()
        try:
            guard.self_test(["a cat"], no_such=1)
        except GuardUnavailable:
            show()
        sys.stdout.flush()
        os._exit(0)
    """
)


def test_a_forked_process_says_nothing_failed_before_something_did(tmp_path):
    """As of `gunicorn --preload`: no alert about a self-test that passed or a policy that nobody changed."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    policy = tmp_path / "mine.yaml"
    policy.write_text((ROOT / "policies" / "anonymize_faces.yaml").read_text())
    done = run(FORKED, metrics, str(policy))

    assert done.returncode == 0, done.stderr
    forked, passed, failed = done.stdout.splitlines()
    assert forked == passed == "1.0 1.0"
    assert sorted(failed.split()) == ["0.0", "1.0"]
