"""A guard that is made before its service forks, as where a server loads the program before it starts its workers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MASTER = textwrap.dedent(
    """
    import os, sys, time, urllib.request
    from pathlib import Path
    import instant
    from apl_guard import Guard, PolicyBlocked, backend

    backend._BUILT_IN["instant"] = "instant:Adapter"
    policy = Path(sys.argv[1])
    guard = Guard(instant.Pipe(), policy)
    watch = guard.watch_policy(0.02)
    server = guard.serve_metrics(0)

    def worker(work):
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(7)
        return pid

    def wait_for_the_change():
        while guard.policy.version == 1:
            try:
                guard("a cat")
            except PolicyBlocked:
                time.sleep(0.01)

    pids = [worker(wait_for_the_change), worker(guard.close)]
    policy.write_text(policy.read_text().replace("version: 1", "version: 2"))
    end = time.monotonic() + 20
    for name, pid in zip(("changed", "closed"), pids):
        while time.monotonic() < end and not (status := os.waitpid(pid, os.WNOHANG))[0]:
            time.sleep(0.01)
        print(name, os.waitstatus_to_exitcode(status[1]))
        if not status[0]:
            os.kill(pid, 9)
    text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read()
    print("served", b"apl_guard_policy_info" in text)
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_workers_follow_their_policy_and_end(tmp_path):
    """A worker puts a changed policy in force, one that closes its guard ends, and the first process serves on."""
    policy = tmp_path / "mine.yaml"
    policy.write_text(
        "apiVersion: apl-guard/v1\nkind: Policy\nmetadata: {name: mine, version: 1}\n"
        "spec: {rules: [{id: all, when: {channels: [prompt]}, then: {action: block}}]}\n"
    )
    path = [str(ROOT / "tests" / "audit"), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}

    done = subprocess.run(
        [sys.executable, "-c", MASTER, str(policy)], env=environment, capture_output=True, text=True, timeout=120
    )

    assert done.stdout.splitlines() == ["changed 7", "closed 7", "served True"], done.stderr
