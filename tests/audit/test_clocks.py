"""Clocks that are set back: nothing is lost, nothing is hidden, and what was written last is shown last."""

import json

import instant
import pytest
from logs import call
from typer.testing import CliRunner

from apl_guard import Guard, Policy
from apl_guard.audit import AuditLog
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.index import Index
from apl_guard.audit.newest import newest
from apl_guard.audit.periods import periods
from apl_guard.audit.reading import read_log
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.cli import app

HOUR = 3600
START = 1_789_999_200
"""14:00 on 21 September 2026."""

POLICY = """\
apiVersion: apl-guard/v1
kind: Policy
metadata: {name: mine, version: VERSION}
spec:
  rules:
    - {id: prompts, when: {channels: [prompt]}, then: {action: unsafe_allow}}
"""


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock of the machine, so many hours after the start. From there it goes on."""
    shown = [START]

    def look():
        shown[0] += 0.001
        return shown[0]

    def set_to(hours):
        shown[0] = START + hours * HOUR

    monkeypatch.setattr("time.time", look)
    return set_to


def open_log(folders, **options):
    """A log with few keys to a generation."""
    log, witness = folders
    return DurableLog(log, [witness], options=LogOptions(**{"epochs": 4, **options}))


def ask(*arguments):
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_clock_that_goes_backwards_changes_nothing(folders, clock):
    """Order is by number; a key whose time cannot be told is destroyed at once, through generations of them."""
    log, witness = folders
    durable = open_log(folders)
    for number, hours in enumerate([0, -24, 100_000, -100_000, 0, -1, -2, -3, -4, -5, 0]):
        clock(hours)
        call(durable, number)
        durable.seal()
    durable.close()

    report = verify_log(log, [witness])
    assert (report.verdict, report.findings) == (Verdict.VALID, [])
    assert len(list(log.glob("keys-*.pub"))) > 2
    assert any("the clock was set back 7 times" in note for note in report.notes)


def test_nothing_is_missing_from_the_index(folders, clock):
    """Whatever times records bear, all are found; asked for a time, those that bear it."""
    log, _ = folders
    durable = open_log(folders)
    for number, hours in enumerate([0, 5, -5, -5, 0]):
        clock(hours)
        call(durable, number)
    durable.close()

    def count(*options):
        return len(ask("query", log, "--event", "guard.decision", *options))

    assert count() == 5
    assert count("--since", "2026-09-21T13:00Z", "--until", "2026-09-21T15:00Z") == 2
    assert count("--since", "2026-09-21T15:00Z") == 1
    assert count("--until", "2026-09-21T13:00Z") == 2
    with Index(log) as index:
        assert (index.update(), index.rebuild()) == (0, len(list(read_log(log))))


def test_the_newest_records_are_those_written_last(folders, clock):
    """Of one process whose clock is set back, and of one that came after another with a clock ahead."""
    log, _ = folders
    clock(10_000)
    ahead = open_log(folders)
    call(ahead, 0)
    ahead.close()
    clock(5)
    durable = open_log(folders)
    call(durable, 1)
    clock(0)
    call(durable, 2)
    durable.seal()
    clock(-5)
    call(durable, 3)  # not sealed yet
    with Index(log) as index:
        index.update()
        shown = [(r["event"], r.get("decision_id", "")[-1:]) for r in newest(index, log, 5)]
    durable.close()

    assert shown == [
        ("guard.outcome", "1"),
        *(("guard.decision", "2"), ("guard.outcome", "2")),
        *(("guard.decision", "3"), ("guard.outcome", "3")),
    ]
    assert ask("tail", log, "-n", "1")[0].endswith("audit.close")
    assert len(ask("tail", log, "-n", "100")) == len(list(read_log(log)))


def test_without_its_checkpoints_the_newest_records_go_by_their_clocks(folders, clock):
    """A log whose checkpoints are gone is not verified, but it is shown."""
    log, _ = folders
    for number, hours in enumerate([0, 1, 2]):
        clock(hours)
        durable = open_log(folders)
        call(durable, number)
        durable.close()
    (log / "checkpoints.jsonl").unlink()

    assert [line.split("T")[1][:2] for line in ask("tail", log, "-n", "9")][::4] == ["14", "15", "16"]


def test_every_policy_is_found_by_the_times_under_which_it_decided(folders, clock, tmp_path):
    """By the time of each of its calls; and in the list, none stands before the one that it replaced."""
    log, witness = folders
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("VERSION", "1"))
    with AuditLog(log, witness=witness) as audit:
        guard = Guard(instant.Pipe(), path, audit=audit)
        for version, hours in enumerate([(1, 3), (4, 2), (3, -9, -1), (0, 4)], start=1):
            if version > 1:
                path.write_text(POLICY.replace("VERSION", str(version)))
                guard.reload_policy()
            for hour in hours:
                clock(hour)
                guard("a cat")

    found = periods(log)
    assert [period.policy["version"] for period in found] == [1, 2, 3, 4]
    assert [period.set_back is not None for period in found] == [False, True, True, False]
    for record in read_log(log, containing=b'"event":"guard.decision"'):
        at = record.fields["timestamp"]
        covering = [period.policy["version"] for period in found if period.covers(at)]
        assert record.fields["policy"]["version"] in covering
        shown = [json.loads(line)["policy"]["version"] for line in ask("policies", log, "--at", at, "--json")]
        assert shown == covering
    assert "clock set back" in ask("policies", log)[1]
    assert Policy.load(path).version == 4


def test_callers_at_the_same_moment_set_no_clock_back(folders, clock):
    """They may come in another order than they looked at the clock."""
    log, witness = folders
    durable = open_log(folders)
    for number, hours in enumerate([0, -0.0002, 0.0001, -0.0001]):
        clock(hours)
        call(durable, number)
        durable.seal()
    durable.close()

    assert verify_log(log, [witness]).notes == []


def test_records_that_are_dated_back_are_noted(folders, clock):
    """Their checkpoint says since when they are vouched for, whatever they say themselves."""
    log, witness = folders
    durable = open_log(folders, checkpoint_seconds=HOUR)
    call(durable, 0)
    durable.seal()
    clock(-1000)
    call(durable, 1)
    clock(0.01)
    call(durable, 2)
    durable.seal()
    durable.close()

    report = verify_log(log, [witness])
    assert report.verdict == Verdict.VALID
    (note,) = report.notes
    assert "2 records say that they are older" in note
    assert "first record 3: 2026-08-10T22:00:00" in note


def test_statistics_of_a_time_count_no_outcome_as_missing_that_came_later(folders, clock):
    """Nor is a decision from before it less than nothing."""
    log, _ = folders
    durable = open_log(folders)
    about = {"action": "allow", "policy": {"name": "p"}}
    durable.append("guard.decision", {"decision_id": "a", **about}, decision="a", opens=True)
    clock(1)
    durable.append("guard.outcome", {"decision_id": "a", "result": "passed"}, decision="a", closes=True)
    durable.append("guard.decision", {"decision_id": "b", **about}, decision="b", opens=True)
    durable.close()

    def still_open(*options):
        return json.loads("".join(ask("stats", log, "--json", *options)))["open"]["decisions without outcome"]

    assert still_open() == 1
    assert still_open("--until", "2026-09-21T14:30Z") == 0
    assert still_open("--since", "2026-09-21T14:30Z") == 1
