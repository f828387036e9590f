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


IN_THE_MIDDLE = textwrap.dedent(
    """
    import os, sys, threading, time
    import torch
    from diffusers import hooks
    from apl_guard import Guard
    from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

    def compute():  # with every thread that torch may have
        torch.ones(1 << 20).exp()

    torch.set_num_threads(1)  # as the page on services says: those of torch do not outlive a fork
    compute()
    pipe = tiny_pipe(family="flux")
    pipe.transformer.enable_cache(hooks.FirstBlockCacheConfig())
    guard = Guard(pipe, prefix=random_prefix(pipe, n=4))
    reached, go = threading.Event(), threading.Event()

    def hold():
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            go.wait()

    class Held(type(pipe.tokenizer)):
        def tokenize(self, text, **options):
            hold()
            return super().tokenize(text, **options)

    if sys.argv[1] == "tokenizes":
        pipe.tokenizer.__class__ = Held
    else:
        pipe.transformer.register_forward_pre_hook(lambda *_: hold())

    def draw():
        return guard("a cat", **FAMILIES["flux"].options)

    threading.Thread(target=draw, daemon=True).start()
    reached.wait()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(2)
        compute()
        draw()
        os._exit(7)
    end = time.monotonic() + 20
    while time.monotonic() < end and not (status := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.01)
    print(os.waitstatus_to_exitcode(status[1]), flush=True)
    if not status[0]:
        os.kill(pid, 9)
    os._exit(0)  # past the thread, which is still there
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("doing", ["tokenizes", "draws with a cache"])
def test_a_child_draws_although_a_thread_of_its_parent_was_drawing(doing):
    """It has the parent's memory and none of its threads: nobody is left there to let go of a lock, or to compute."""
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_MIDDLE, doing],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout.splitlines() == ["7"], done.stderr


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
