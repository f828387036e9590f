"""The service of docs/service.md, taken from the page and run as it says, with workers, a model and requests."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apl_guard import Guard
from apl_guard.testing import random_prefix, tiny_pipe

for needed in ("fastapi", "gunicorn", "uvicorn"):
    pytest.importorskip(needed, reason=f"{needed} is not installed; make install")

ROOT = Path(__file__).parents[1]
WORKERS = 2
START_SECONDS = 300


def run(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "apl_guard", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def write_files(folder):
    """Those of the page, with the policy that it begins with; the page."""
    page = (ROOT / "docs" / "service.md").read_text()
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(text)
    run("policy", "init", folder / "policy.yaml")
    return page


class Service:
    """The page's files, started with its command."""

    def __init__(self, folder):
        page = write_files(folder)
        code = (folder / "service.py").read_text()
        assert "le=100)" in code
        # So that a caller can make the backend fail.
        (folder / "service.py").write_text(code.replace("le=100)", "le=100_000)"))
        command = re.search(r"^gunicorn .*$", page, re.MULTILINE)[0].split()
        self.log, self.witness = folder / "log", folder / "witness"
        (folder / "metrics").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._output = (folder / "output").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, "--bind", self.address, "--workers", str(WORKERS)],
            cwd=folder,
            env=os.environ
            | {
                **{"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
                **{"GUARD_POLICY": "policy.yaml", "GUARD_LOG": str(self.log), "GUARD_WITNESS": str(self.witness)},
                "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
            },
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return answer.read().decode()

    def ask(self, prompt, steps=1, seed=0, **headers):
        """Status and answer."""
        body = json.dumps({"prompt": prompt, "steps": steps, "seed": seed}).encode()
        headers = {"content-type": "application/json", **{f"x-{name}": value for name, value in headers.items()}}
        request = urllib.request.Request(f"http://{self.address}/images", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name, label):
        """Label → what all workers counted."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics/")):
            for sample in family.samples:
                if sample.name == name and sample.value:
                    found[sample.labels[label]] = found.get(sample.labels[label], 0) + int(sample.value)
        return found

    def wait_for(self, what, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if what():
                    return
            time.sleep(0.2)
        pytest.fail(f"it did not come true within {seconds} s:\n{Path(self._output.name).read_text()[-3000:]}")

    def stop(self):
        """As an operator stops it; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def close(self):
        self._process.kill()
        self._process.wait(30)
        self._output.close()


@pytest.fixture
def service(tmp_path):
    with contextlib.closing(Service(tmp_path)) as service:
        yield service


def test_the_service_of_the_page_answers_counts_and_stops_as_the_page_says(service):
    """Every kind of answer, metrics of all workers equal to the log, an image for the call that runs at the end."""
    canaries = 2 * WORKERS
    service.wait_for(
        lambda: service.metric("apl_guard_outcomes_total", "result") == {"passed": canaries}, START_SECONDS
    )
    assert json.loads(service.get("/ready")) == {"ready": True}

    status, answer = service.ask("a photo of a man", tenant="acme", account="account-7")
    assert (status, len(answer["images"])) == (200, 1)
    status, refused = service.ask("x" * 10_001, tenant="acme")
    assert (status, refused["error"]["code"]) == (400, "moderation_blocked")
    status, invalid = service.ask("x" * 1_000_001)
    assert (status, invalid["error"]["code"]) == (422, "invalid_request")
    status, broken = service.ask("a cat", steps=100_000)
    assert (status, broken["error"]["code"]) == (502, "upstream_error")
    for beyond in ({"steps": -1}, {"steps": 0}, {"steps": 100_001}, {"seed": -1}, {"seed": 2**63}):
        assert service.ask("a cat", **beyond)[0] == 422

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(service.ask, "a cat", 30)
        service.wait_for(lambda: service.metric("apl_guard_in_progress_requests", "backend"))
        counted = service.metric("apl_guard_outcomes_total", "result")
        assert service.stop() == 0
        assert last.result()[0] == 200

    stats = json.loads(run("audit", "stats", service.log, "--json"))
    assert counted == {"passed": canaries + 1, "blocked": 1, "invalid": 1, "backend_error": 1}
    assert stats["results"] == counted | {"passed": canaries + 2}
    assert stats["images"] == {"applied": canaries + 2}
    assert stats["open"] == {"decisions without outcome": 0}
    assert stats["unwritten"] == {}
    assert stats["events"]["audit.close"] == WORKERS
    acme = run("audit", "query", service.log, "--tenant", "acme", "--event", "guard.decision", "--json").splitlines()
    assert {json.loads(line)["decision_id"] for line in acme} == {
        answer["decision_id"],
        refused["error"]["decision_id"],
    }
    asked = run("audit", "query", service.log, "--subject", "account-7", "--json").splitlines()
    assert [json.loads(line)["decision_id"] for line in asked] == [answer["decision_id"]]
    tests = run("audit", "query", service.log, "--where", "route=self-test", "--json").splitlines()
    assert len(tests) == canaries
    run("audit", "verify", service.log, "--witness", service.witness)


def test_the_tests_of_the_page_pass(tmp_path):
    """Those that show how to test one's own code."""
    write_files(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_drawing.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_progress_of_the_page_is_told_and_stops_a_call(tmp_path, monkeypatch):
    """Without a callback, so the images are protected; what it raises reaches the service and is on record."""
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from progress import Progress, report_progress

    def told(done, total):
        steps.append((done, total))
        if done == last:
            raise TimeoutError

    pipe = tiny_pipe()
    report_progress(pipe, told)
    with Guard(pipe, prefix=random_prefix(pipe), audit=tmp_path / "log") as guard:
        steps, last = [], None
        made = guard.generate("a cat", num_inference_steps=3)
        assert (steps, made.outcome.protection) == ([(1, 3), (2, 3), (3, 3)], "applied")
        steps, last = [], 2
        with pytest.raises(TimeoutError):
            guard.generate("a cat", num_inference_steps=3)
        assert steps == [(1, 3), (2, 3)]
    assert json.loads(run("audit", "stats", tmp_path / "log", "--json"))["results"] == {"passed": 1, "backend_error": 1}
    steps, last = [], None
    assert list(Progress(told, "abc", 3)) == ["a", "b", "c"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
