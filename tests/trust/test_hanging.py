"""A registry on a real server of HTTP that takes every connection and answers none of them, for a while."""

import functools
import gc
import http.server
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from trusted import draw

from apl_guard import Guard, PrefixRegistry, PrefixRevoked, RegistryUnavailable
from apl_guard.policy.acceptance import Acceptance
from apl_guard.registry import source

pytest.importorskip("aiohttp", reason="fsspec speaks HTTP with aiohttp")


class _Hanging(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers.wait()
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, the URL under which it is served, and the server, which hangs while `answers` is not set."""
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Hanging, directory=str(folder))
    ) as server:
        server.asked, server.answers, server.daemon_threads = [], threading.Event(), True
        server.answers.set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}", server
        server.answers.set()
        server.shutdown()


def slowest(call, seconds):
    """The time that the slowest of many calls took, one after the other."""
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        call()
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    return max(took)


def seconds_until(error, call, patience):
    """How long calls go on until one raises."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        try:
            call()
        except error:
            break
        time.sleep(0.02)
    return time.monotonic() - began


def threads():
    """Those that look at registries."""
    return {thread for thread in threading.enumerate() if thread.name == "apl-guard registry"}


def until(condition, patience=60.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_no_call_waits_for_a_server_that_hangs(served, shared_pipe, publish):
    """Looks at it are in the background, and the revocation that it held back comes as soon as it answers."""
    folder, url, server = served
    entry = publish(1, PrefixRegistry(folder))
    registry = PrefixRegistry(url, refresh_after=8)
    guard = Guard(shared_pipe, registry=registry)

    server.answers.clear()
    PrefixRegistry(folder).revoke(entry.prefix.digest, "weak")
    server.asked.clear()
    # What the guard asks on each call, without the drawing, which takes longer than a wait that shall be seen.
    assert slowest(lambda: registry.check(registry.candidates(Acceptance())[0], Acceptance()), 8) < 3
    assert server.asked  # it was looked at, in vain

    server.answers.set()
    assert seconds_until(PrefixRevoked, lambda: registry.check(entry, Acceptance()), 20) < 10
    with pytest.raises(PrefixRevoked):
        draw(guard)


def test_a_revocation_comes_in_time_also_to_a_service_that_is_seldom_called(served, publish):
    """The copy is looked after between calls: the next call finds the revocation without asking the server."""
    folder, url, server = served
    entry = publish(1, PrefixRegistry(folder))
    registry = PrefixRegistry(url, refresh_after=6)
    registry.list()

    PrefixRegistry(folder).revoke(entry.prefix.digest, "weak")
    time.sleep(6)
    server.answers.clear()
    with pytest.raises(PrefixRevoked, match="weak"):
        registry.check(entry, Acceptance())


def test_a_copy_that_is_too_old_fails_closed_while_the_server_hangs(served, publish, monkeypatch):
    """After `valid_for`, and all callers wait for one look, not each for its own."""
    monkeypatch.setattr(source, "_SILENCE_SECONDS", 1.0)
    folder, url, server = served
    publish(1, PrefixRegistry(folder))
    registry = PrefixRegistry(url, refresh_after=1, valid_for=3)
    registry.list()
    server.answers.clear()

    assert 1 < seconds_until(RegistryUnavailable, registry.list, 20) < 10
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(registry.list) for _ in range(8)]
    assert [type(each.exception()) for each in asked] == [RegistryUnavailable] * 8
    assert time.monotonic() - began < 6

    server.answers.set()
    assert registry.list()[0].name == "sd15"


def test_a_process_that_starts_while_the_server_hangs(served, publish, monkeypatch):
    """It waits once, then goes on with the copy from before; without a copy there is none to go on with."""
    monkeypatch.setattr(source, "_SILENCE_SECONDS", 1.0)
    folder, url, server = served
    publish(1, PrefixRegistry(folder))
    PrefixRegistry(url).list()
    server.answers.clear()

    registry = PrefixRegistry(url)
    began = time.monotonic()
    assert registry.list()[0].name == "sd15"
    first = time.monotonic() - began
    assert slowest(registry.list, 0.5) < 0.9
    assert 0.9 < first < 9

    monkeypatch.setenv("APL_GUARD_CACHE", str(folder.parent / "empty"))
    with pytest.raises(RegistryUnavailable, match="cannot be copied"):
        PrefixRegistry(url).list()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_worker_that_is_forked_amid_a_look_goes_on_and_looks_itself(served, publish):
    """As those of `gunicorn --preload` may be: locks and threads of the parent are gone, the copy is not."""
    folder, url, server = served
    entry = publish(1, PrefixRegistry(folder))
    registry = PrefixRegistry(url, refresh_after=8)
    registry.list()
    server.asked.clear()
    server.answers.clear()
    until(lambda: server.asked)  # the parent's thread is looking now

    child = os.fork()
    if child == 0:
        status = 1
        try:
            quick = slowest(lambda: registry.check(entry, Acceptance()), 3) < 3
            late = seconds_until(PrefixRevoked, lambda: registry.check(entry, Acceptance()), 90)
            status = 2 if not quick else 3 if late >= 90 else 4 if not threads() else 0
        finally:
            os._exit(status)
    time.sleep(4)
    server.answers.set()
    PrefixRegistry(folder).revoke(entry.prefix.digest, "weak")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_thread_ends_with_the_registry(served, publish):
    """A service that makes a registry for each request does not fill up with threads."""
    folder, url, _ = served
    publish(1, PrefixRegistry(folder))
    before = threads()
    for _ in range(3):
        PrefixRegistry(url).list()
    gc.collect()
    until(lambda: not threads() - before)
