"""A watched policy: whatever way its files change in, what they say in the end is in force, in every process."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from apl_guard import Guard, GuardUnavailable, InvalidInput

POLICY = """\
apiVersion: apl-guard/v1
kind: Policy
metadata: {name: mine, version: 1}
spec:
  names: [{id: stars, file: stars.csv}]
  rules:
    - id: prompts
      when: {channels: [prompt]}
      then: {action: allow}
    - id: refuse-stars
      when: {channels: [prompt], names: [stars]}
      then: {action: block}
"""


def version(number):
    return POLICY.replace("version: 1", f"version: {number}")


def draw(prompt):
    return "an image"


@pytest.fixture
def path(tmp_path):
    """A policy file with a list beside it."""
    (tmp_path / "stars.csv").write_text("name\nMara Voss\n")
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def guard(path):
    with Guard(draw, path, metrics_registry=CollectorRegistry()) as guard:
        yield guard


def wait(holds, seconds=20):
    """Until it is so."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came so far"
        time.sleep(0.01)


def reloads(guard, outcome):
    name = "apl_guard_config_reloads_total"
    return guard._parts.metrics_registry.get_sample_value(name, {"outcome": outcome})


def test_it_puts_changes_in_force_and_survives_bad_files(guard, path, caplog):
    """Good, bad, a good list beside a bad file, good; then it ends."""
    with caplog.at_level(logging.WARNING, "apl_guard"), guard.watch_policy(seconds=0.02):
        path.write_text(version(2))
        wait(lambda: reloads(guard, "accepted") >= 1)
        path.write_text("nonsense")
        wait(lambda: reloads(guard, "rejected") >= 1)
        assert guard.policy.version == 2
        (path.parent / "stars.csv").write_text("name\nKai Lund\n")
        wait(lambda: reloads(guard, "rejected") >= 2)
        path.write_text(version(3))
        wait(lambda: guard.policy.version == 3)
    assert not [t for t in threading.enumerate() if t.name == "apl-guard policy"]
    assert "not put in force" in caplog.text


def test_a_change_before_the_watch_counts(guard, path):
    """A service loads its model between making the guard and watching."""
    path.write_text(version(2))

    with guard.watch_policy(seconds=0.01):
        wait(lambda: guard.policy.version == 2)


def test_a_list_that_comes_after_the_policy_that_names_it(guard, path):
    """As where files are copied one by one: missing, then wrong, then right, with the policy file untouched."""
    with guard.watch_policy(seconds=0.01):
        wait(lambda: reloads(guard, "unchanged") >= 1)
        path.write_text(version(2).replace("stars.csv", "new.csv"))
        wait(lambda: reloads(guard, "rejected") >= 1)
        new = path.parent / "new.csv"
        new.write_text("nome\nKai Lund\n")
        wait(lambda: reloads(guard, "rejected") >= 2)
        new.write_text("name\nKai Lund\n")
        wait(lambda: guard.policy.version == 2)


def test_a_file_that_may_be_read_at_last(guard, path, monkeypatch):
    """Its time of modification says nothing about that; chmod is seen all the same."""
    real = os.open

    def as_another_account(file, *rest, **named):
        if Path(file) == path and not path.stat().st_mode & 0o004:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *rest, **named)

    monkeypatch.setattr(os, "open", as_another_account)
    monkeypatch.setattr("apl_guard.in_force.watch._COARSE_SECONDS", 1000.0)
    with guard.watch_policy(seconds=0.01):
        wait(lambda: reloads(guard, "unchanged") >= 1)
        other = path.with_name("other.yaml")
        other.write_text(version(2))
        other.chmod(0o600)
        other.replace(path)
        wait(lambda: reloads(guard, "rejected") >= 1)
        path.chmod(0o644)
        wait(lambda: guard.policy.version == 2)


def test_a_change_that_the_clock_of_the_files_does_not_tell(guard, path, monkeypatch):
    """Written twice within one tick, as network file systems have: the same size, the same times."""
    same = (0, 0, 0, 0, 0)
    monkeypatch.setattr("apl_guard.in_force.watch._look", lambda file: same)
    monkeypatch.setattr("apl_guard.in_force.watch._COARSE_SECONDS", 0.05)
    with guard.watch_policy(seconds=0.01):
        wait(lambda: reloads(guard, "unchanged") >= 1)
        path.write_text(version(2))
        wait(lambda: guard.policy.version == 2)


def test_a_list_that_is_still_being_written_is_waited_for(guard, path):
    """The beginning of a list is a list, too, of fewer people; those who are missing would be drawn for a while."""
    people = ["Mara Voss", *(f"Somebody Number{letter}" for letter in "abcdefgh"), "Kai Lund"]
    with guard.watch_policy(seconds=0.01):
        wait(lambda: reloads(guard, "unchanged") >= 1)
        with (path.parent / "stars.csv").open("w") as stream:
            for line in ["name", *people]:
                stream.write(f"{line}\n")
                stream.flush()
                time.sleep(0.05)
        wait(lambda: reloads(guard, "accepted") >= 1)
        assert guard.check("Kai Lund").action == "block"
    assert reloads(guard, "accepted") == 1


def test_a_file_that_never_rests_is_read_all_the_same(guard, path, monkeypatch):
    """Something that touches it all the time does not keep a policy out."""
    monkeypatch.setattr("apl_guard.in_force.watch._MOST_LOOKS", 5)
    ended = threading.Event()

    def touch():
        while not ended.wait(0.005):
            os.utime(path)

    path.write_text(version(2))
    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with guard.watch_policy(seconds=0.01):
            wait(lambda: guard.policy.version == 2)
    finally:
        ended.set()
        toucher.join()


def test_what_is_missing_besides_the_files_is_asked_for_again(guard, path, monkeypatch):
    """A prefix or a registry that is away for a while does not keep a policy out for good."""
    from apl_guard.in_force.reloadable import ReloadablePolicy

    away = [GuardUnavailable("the registry is away")] * 2
    real = ReloadablePolicy._find_demands

    def find(self, policy):
        if away:
            raise away.pop()
        return real(self, policy)

    monkeypatch.setattr("apl_guard.in_force.watch._COARSE_SECONDS", 0.02)
    with guard.watch_policy(seconds=0.01):
        wait(lambda: reloads(guard, "unchanged") >= 1)
        monkeypatch.setattr(ReloadablePolicy, "_find_demands", find)
        path.write_text(version(2))
        wait(lambda: guard.policy.version == 2)
    assert not away


def test_a_folder_exchanged_by_its_link(tmp_path):
    """As Kubernetes exchanges a ConfigMap: files are links into a folder, which is a link that moves."""
    for number in (1, 2):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "policy.yaml").write_text(version(number))
        (folder / "stars.csv").write_text("name\nMara Voss\n" if number == 1 else "name\nKai Lund\n")
    (tmp_path / "..data").symlink_to("..1")
    for file in ("policy.yaml", "stars.csv"):
        (tmp_path / file).symlink_to(f"..data/{file}")

    with Guard(draw, tmp_path / "policy.yaml") as guard, guard.watch_policy(seconds=0.01):
        (tmp_path / "new").symlink_to("..2")
        (tmp_path / "new").replace(tmp_path / "..data")
        wait(lambda: guard.policy.version == 2)
        assert guard.check("Kai Lund").action == "block"
        assert guard.check("Mara Voss").action == "allow"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_workers_that_are_forked_follow_the_file(guard, path):
    """A server that loads once and forks: each child that answers calls watches, also where it was forked amid one."""
    with guard.watch_policy(seconds=0.01), guard._parts.policy._reloading:
        child = os.fork()
        if child == 0:
            try:
                guard("a cat")
                path.write_text(version(2))
                wait(lambda: guard.check("a cat").policy_version == 2)
                guard.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_guard_watches_and_reads_no_more(guard):
    """It could not put on record what it reads."""
    guard.close()

    for call in (guard.reload_policy, guard.watch_policy):
        with pytest.raises(GuardUnavailable, match="closed"):
            call()
    assert not [t for t in threading.enumerate() if t.name == "apl-guard policy"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", None])
def test_a_time_that_no_thread_can_wait_for_is_refused(guard, seconds):
    """Else the thread would end at once, or never sleep, and the old policy would stay without a word."""
    with pytest.raises(InvalidInput, match="seconds: found"):
        guard.watch_policy(seconds)
    assert not [t for t in threading.enumerate() if t.name == "apl-guard policy"]
