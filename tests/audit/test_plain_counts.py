"""Answers, statistics and exports against counts of a few lines of Python over the lines of any log."""

import csv
import io
import itertools
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logs import TORTURE
from typer.testing import CliRunner

from apl_guard.audit import disk
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.question import COLUMNS
from apl_guard.cli import app

OPTIONS = LogOptions(epochs=2, checkpoint_seconds=1e6, heartbeat_seconds=1e6, segment_bytes=4000)
few = st.sampled_from
POLICY = st.fixed_dictionaries({"name": few(["p", "q"]), "version": few([1, 2]), "mode": few(["enforce", "shadow"])})
DECISION = st.fixed_dictionaries(
    {"policy": POLICY, "tenant": few([None, "a", "7"]), "action": few(["block", "allow"]), "backend": few(["x", "y"])}
)
OUTCOME = st.fixed_dictionaries(
    {
        "result": few(["passed", "blocked", "failed", "withheld"]),
        "images": few([0, 1, 4]),
        "protection": few([None, "applied", "missing"]),
        "effective": few(["block", "allow", "anonymize"]),
    }
)
REFUSAL = st.fixed_dictionaries({"policy": POLICY, "tenant": few([None, "a"]), "result": few(["invalid", "failed"])})
STEP = st.one_of(
    st.tuples(st.just("call"), DECISION, OUTCOME),
    st.tuples(st.just("call"), DECISION, OUTCOME),
    st.tuples(few(["decided", "outcome unwritten"]), DECISION, st.none()),
    st.tuples(st.just("refused"), REFUSAL, st.none()),
    st.tuples(few(["decision unwritten", "refusal unwritten", "sample unwritten"]), st.none(), st.none()),
    st.tuples(st.just("sampled"), st.fixed_dictionaries({"seen": few([[], ["leaked"]])}), st.none()),
    st.tuples(st.just("reloaded"), st.fixed_dictionaries({"policy": POLICY, "guard": few(["g", "h"])}), st.none()),
)
LOG = st.lists(st.tuples(st.lists(st.lists(STEP, max_size=6), min_size=1, max_size=3), st.booleans()), max_size=3)
"""Processes, each with what its threads do, and whether it ends as it should."""


def write(log, processes):
    """Write a log of many writers and threads."""
    numbers = itertools.count()

    def work(durable, steps):
        for what, fields, outcome in steps:
            id = f"{next(numbers):032x}"
            about = {"decision_id": id, **(fields or {})}
            match what:
                case "call" | "decided" | "outcome unwritten":
                    durable.append("guard.decision", about, decision=id, opens=True)
                    if what == "outcome unwritten":
                        durable.refuse("guard.outcome", id)
                    if what == "call":
                        durable.append("guard.outcome", {"decision_id": id, **outcome}, decision=id, closes=True)
                case "refused":
                    durable.append("guard.refusal", about, decision=id)
                case "sampled":
                    durable.append("leak.sample", about, decision=id)
                case "reloaded":
                    durable.append("policy.reloaded", fields, decision=None)
                case _:
                    event = {"decision": "guard.decision", "refusal": "guard.refusal", "sample": "leak.sample"}
                    durable.refuse(event[what.split()[0]], id)

    for threads, is_closed in [*processes, ([[]], True)]:
        durable = DurableLog(log, options=OPTIONS)
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, itertools.repeat(durable), threads))
        durable.close() if is_closed else durable.leave()


def ask(*arguments):
    """What the program prints."""
    answer = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def is_within(record, since, until):
    return (since or "") <= record["timestamp"] < (until or "~")


def gaps(lines, since=None, until=None):
    """Event and decision of what could not be written."""
    return [
        tuple(pair) for r in lines if r["event"] == "audit.gap" and is_within(r, since, until) for pair in r["records"]
    ]


def counted(found):
    """Without what is not there."""
    return {name: number for name, number in found.items() if number}


def check_statistics(log, lines, since, until):
    """Each number of `stats`."""
    options = [*(["--since", since] if since else []), *(["--until", until] if until else [])]
    found = json.loads(ask("stats", log, "--json", *options))
    mine = [r for r in lines if is_within(r, since, until)]
    of = {event: [r for r in mine if r["event"] == f"guard.{event}"] for event in ("decision", "outcome", "refusal")}
    missing = gaps(lines, since, until)
    assert found["events"] == Counter(r["event"] for r in mine)
    assert found["actions"] == Counter(r["action"] for r in of["decision"])
    assert found["policies"] == Counter(r["policy"]["name"] for r in of["decision"])
    failed = Counter({"failed": sum(event.startswith("guard.") for event, _ in missing)})
    assert found["results"] == counted(Counter(r["result"] for r in of["outcome"] + of["refusal"]) + failed)
    images = Counter()
    for r in of["outcome"]:
        images[r["protection"] or "not on record"] += r["images"] if r["result"] == "passed" else 0
    assert counted(found["images"]) == counted(images)
    ended = {r["decision_id"] for r in lines if r["event"] == "guard.outcome"}
    ended |= {id for event, id in gaps(lines) if event == "guard.outcome"}
    assert found["open"] == {"decisions without outcome": sum(r["decision_id"] not in ended for r in of["decision"])}
    assert found["unwritten"] == Counter(event for event, _ in missing)


def check_question(log, lines, since, until, names):
    """The groups of `query`, and the number of what it lists for the first."""
    options = [*(["--since", since] if since else []), *(["--until", until] if until else [])]
    decided = {r["decision_id"]: r for r in lines if r["event"] == "guard.decision"}
    of_calls = {"policy", "tenant", "backend", "action"} & {*names} and {"result", "protection", "images"} & {*names}

    def value(record, name):
        for fields in (record, decided.get(record.get("decision_id"), {}) if of_calls else {}):
            for part in COLUMNS[name][2:].split("."):
                fields = (fields or {}).get(part)
            if fields is not None:
                return fields
        return None

    mine = [r for r in lines if is_within(r, since, until)]
    if of_calls:
        mine = [r for r in mine if r["event"] in ("guard.outcome", "guard.refusal")]
    expected = Counter(tuple(value(r, name) for name in names) for r in mine)
    groups = [option for name in names for option in ("--group-by", name)]
    found = [json.loads(line) for line in ask("query", log, "--json", *groups, *options).splitlines()]
    assert {tuple(row[name] for name in names): row["count"] for row in found} == expected
    for row in found[:1]:
        where = [f"{name}={row[name]}" for name in names if row[name] is not None]
        same = [
            each
            for each in expected
            if all(v is not None and f"{n}={v}" in where for n, v in zip(names, each, strict=True))
        ]
        asked = [option for each in where for option in ("--where", each)]
        if asked and len(where) == len(names):
            listed = ask("query", log, "--json", "--limit", 1000, *asked, *options).splitlines()
            assert len(listed) == sum(expected[each] for each in same)


def check_table(log, lines):
    """One row of `export --csv` for each call, with how it ended."""
    table = list(csv.DictReader(io.StringIO(ask("export", log, "--csv"))))
    expected = {r["decision_id"]: "unknown" for r in lines if r["event"] == "guard.decision"}
    expected |= {r["decision_id"]: r["result"] for r in lines if r["event"] in ("guard.outcome", "guard.refusal")}
    expected |= {id: "failed" for event, id in gaps(lines) if event.startswith("guard.")}
    assert sorted((row["decision_id"], row["result"]) for row in table) == sorted(expected.items())
    images = {r["decision_id"]: r["images"] for r in lines if r["event"] == "guard.outcome"}
    assert sum(int(row["images"] or 0) for row in table) == sum(images.values())


def check_policies(log, rows):
    """Every policy that the records say was put in force, for its guard and since then."""
    found = [json.loads(line) for line in ask("policies", log, "--json").splitlines()]
    told = [(r["guard"], r["timestamp"], r["policy"]["name"]) for r in rows if r["event"] == "policy.reloaded"]
    assert sorted((p["guard"], p["since"], p["policy"]["name"]) for p in found) == sorted(told)


@settings(
    max_examples=200 if TORTURE else 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    processes=LOG,
    places=st.tuples(st.none() | st.floats(0, 0.999), st.none() | st.floats(0, 0.999)),
    names=st.lists(few(["policy", "tenant", "action", "event", "result", "protection"]), min_size=1, unique=True),
    count=st.integers(1, 5),
)
def test_every_answer_is_what_a_plain_count_says(tmp_path, monkeypatch, processes, places, names, count):
    """Of many writers and threads, with calls that died, records that were not written, and policies that changed."""
    log = tmp_path / "log"
    shutil.rmtree(log, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", lambda _: None)
        write(log, processes)
    files = sorted((log / "segments").iterdir())
    lines = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
    times = sorted(r["timestamp"] for r in lines)
    since, until = (None if place is None else times[int(place * len(times))] for place in places)
    if since and until and since >= until:
        until = None

    check_statistics(log, lines, since, until)
    check_question(log, lines, since, until, names)
    check_table(log, lines)
    check_policies(log, lines)
    assert ask("reindex", log) == f"{len(lines)} records\n"
    check_statistics(log, lines, None, None)
    shown = [json.loads(line) for line in ask("tail", log, "--json", "-n", count).splitlines()]
    last = [r for r in lines if r["writer"] == lines[-1]["writer"]]
    assert shown[-min(count, len(last)) :] == last[-count:]
    assert len(shown) == min(count, len(lines))
