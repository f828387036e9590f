"""The log in forms that others ask for: a table, and statements of reasons."""

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import instant
import pytest
from logs import expected

from apl_guard import Guard, PolicyBlocked
from apl_guard.audit import AuditLog
from apl_guard.audit.export import Platform, calls, statements, write_csv

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the module that the tests there share

from policy_documents import policy


def test_csv_has_one_row_for_each_call(log, run, tmp_path):
    """And no cell that a spreadsheet would run."""
    written = run("export", log, "--csv", "--output", tmp_path / "calls.csv")
    assert written[:2] == (0, f"{tmp_path / 'calls.csv'} written: 12 calls\n")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "calls.csv").read_text())))

    assert len(rows) == 12
    assert Counter(row["result"] for row in rows) == Counter(str(row["result"]) for row in calls(log))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+-@" and cell]
    assert {row["tenant"] for row in rows if row["tenant"]} == {"acme", "'=cmd|' /C calc'!A0"}
    assert run("export", log, "--csv", "--until", "2020-01-01")[1].count("\n") == 1


@pytest.mark.parametrize(
    "begin", ["=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", '"=', '""=', ' ="', ' "=']
)
def test_no_cell_is_a_formula(begin):
    """Nor in a spreadsheet that takes wide letters for narrow ones, or cuts at semicolons and so takes other quotes for
    those around a cell. Other names of tenants come back as they were."""
    tenants = [f"{begin}1+1", f"a;{begin}1+1", f"a;{begin}1+1;b", 'a,"b"; c', "'x", "\u00fc\n2"]
    stream = io.StringIO()
    assert write_csv(iter([{"tenant": tenant} for tenant in tenants]), stream) == len(tenants)

    rows = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert [row["tenant"] for row in rows] == ["'" + tenants[0], f"a;'{begin}1+1", f"a;'{begin}1+1;b", *tenants[3:]]
    for row in csv.reader(io.StringIO(stream.getvalue(), newline=""), delimiter=";"):
        assert not [cell for cell in row if cell.strip(' "')[:1] in set("=+-@\uff1d\uff0b\uff0d\uff20")]


CATEGORY = "STATEMENT_CATEGORY_DATA_PROTECTION_AND_PRIVACY_VIOLATIONS"
# What the database checks: values, or the most characters of a text; and what every statement has to have.
VALUES = {
    "decision_visibility": {"DECISION_VISIBILITY_CONTENT_DISABLED", "DECISION_VISIBILITY_OTHER"},
    "decision_ground": {"DECISION_GROUND_INCOMPATIBLE_CONTENT"},
    "content_type": {"CONTENT_TYPE_SYNTHETIC_MEDIA"},
    "category": {CATEGORY},
    "source_type": {"SOURCE_VOLUNTARY"},
    "automated_detection": {"Yes"},
    "automated_decision": {"AUTOMATED_DECISION_FULLY"},
}
TEXTS = {
    "puid": 500,
    "incompatible_content_ground": 500,
    "incompatible_content_explanation": 2000,
    "decision_facts": 5000,
    "content_date": 10,
    "application_date": 10,
}
SOMETIMES = {"decision_visibility_other": 500, "decision_ground_reference_url": 500}
LISTS = {"decision_visibility", "content_type", "territorial_scope"}
NAMES = {"id": "stars", "people": [{"name": "Mara Voss"}]}
RULES = [
    {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
    {"id": "strict", "when": {"channels": ["prompt"], "tenants": ["acme"]}, "then": {"action": "block"}},
    {"id": "stars", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "rewrite"}},
]


@pytest.fixture
def judged(folders, prefix):
    """A log of calls that rules blocked and changed, and of some that were blocked for something else, by id."""
    ids = {}
    with AuditLog(folders[0], witness=folders[1]) as audit:
        guard = Guard(
            instant.Pipe(), policy(*RULES, names=[NAMES], limits={"characters": 50}), prefix=prefix, audit=audit
        )
        for what, tenant, prompt, more in [
            ("by a rule", "acme", "a cat", {}),
            ("by a rule, and an argument that nobody knows", "acme", "a cat", {"odd": 1}),
            ("by no rule that permits it", None, "a cat", {"callback": 1}),
            ("too long", None, "a cat " * 20, {}),
            ("an argument that nobody knows", None, "a cat", {"Mara Voss": 1}),
            ("anonymised", None, "a cat", {}),
            ("rewritten", None, "Mara Voss", {}),
            ("broken", "x", "break", {}),
        ]:
            with guard.context(tenant=tenant), contextlib.suppress(PolicyBlocked, RuntimeError):
                guard(prompt, **more)
            ids[what] = expected(folders[0], event="guard.decision")[-1]["decision_id"]
    return folders[0], ids


def test_statements_of_reasons(judged, run):
    """As the database takes them: its names, values, lengths and dates. None claims that a prompt of the wrong form
    was about a person, and none says whether something was illegal, of which nobody judged."""
    log, ids = judged
    actions = [option for action in ("block", "anonymize", "rewrite") for option in ("--action", action)]
    terms = ["--terms", "x" * 500, "--terms-url", "https://example.org/terms"]
    code, out, _ = run("export", log, "--dsa", "--territory", "FR", "--territory", "DE", *actions, *terms)
    found = {statement["puid"]: statement for statement in map(json.loads, out.splitlines())}

    assert code == 0
    file = log.parent / "statements.jsonl"
    for until, count in (([], 3), (["--until", "2020-01-01"], 0)):
        told = run("export", log, "--dsa", "--territory", "DE", "--output", file, *until)[1]
        assert (told, file.read_text().count("\n")) == (f"{file} written: {count} statements\n", count)
    stated = ["by a rule", "by a rule, and an argument that nobody knows", "by no rule that permits it"]
    assert list(found) == [ids[what] for what in [*stated, "anonymised", "rewritten"]]
    for statement in found.values():
        assert {*VALUES, *TEXTS, "territorial_scope"} <= statement.keys()
        assert statement.keys() <= {*VALUES, *TEXTS, *SOMETIMES, "territorial_scope"}
        assert {name for name, value in statement.items() if isinstance(value, list)} == LISTS
        for name, values in VALUES.items():
            assert {*statement[name]} <= values if name in LISTS else statement[name] in values
        for name in (TEXTS | SOMETIMES).keys() & statement.keys():
            assert 0 < len(statement[name].strip()) <= (TEXTS | SOMETIMES)[name]
        assert statement["territorial_scope"] == ["DE", "FR"]
        assert re.fullmatch("[A-Za-z0-9_-]+", statement["puid"])
        assert date.fromisoformat(statement["application_date"]) == date.fromisoformat(statement["content_date"])
        assert ("decision_visibility_other" in statement) == ("DECISION_VISIBILITY_OTHER" in str(statement))
    why = [found[ids[what]]["incompatible_content_explanation"].partition(":")[0] for what in [*stated, "rewritten"]]
    by = ["rules strict", "rules strict, unknown argument", "no rule applies", "rules stars"]
    assert why == [f"Policy p, version 1 ({each})" for each in by]
    assert [s["puid"] for s in statements(calls(log), Platform(["EU"]))] == [ids[what] for what in stated]


def test_no_statement_says_that_names_were_replaced_where_none_was_found(folders):
    """Behind a backend that takes text alone, `rewrite` is on record of every prompt, whatever it says."""
    with AuditLog(folders[0], witness=folders[1]) as audit:
        guard = Guard(lambda prompt: [1], policy(RULES[0], names=[NAMES], without_prefix="rewrite"), audit=audit)
        decided = [guard.generate(prompt).decision for prompt in ("a red car", "Mara Voss")]

    stated = statements(calls(folders[0]), Platform(["DE"]), ("rewrite",))
    assert [each["puid"] for each in stated] == [decided[1].id]
    assert {each.effective for each in decided} == {"rewrite"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "territory: found none"),
        (["--territory", "XX"], "territory: found ['XX']"),
        (["--territory", "DE", "--terms", " "], "terms: found 1 characters"),
        (["--territory", "DE", "--terms", "x" * 501], "terms: found 501 characters"),
        (["--territory", "DE", "--terms-url", "example.org/terms"], "terms_url: found 'example.org/terms'"),
        (["--territory", "DE", "--terms-url", "https://example.org/" + "x" * 500], "terms_url: found"),
    ],
)
def test_what_the_database_would_refuse_is_an_error(judged, run, tmp_path, given, named):
    """Before a file is written: it refuses a hundred statements for what is wrong with one."""
    code, out, errors = run("export", judged[0], "--dsa", "--output", tmp_path / "out", *given)

    assert (code, out, errors.startswith(f"error: {named}")) == (2, "", True)
    assert not (tmp_path / "out").exists()


def test_territories_have_short_names():
    """The Union's 27 members, and with three more the Economic Area."""
    union, area = (Platform([name]).codes for name in ("EU", "EEA"))
    assert (len(union), set(area) - set(union)) == (27, {"IS", "LI", "NO"})
    assert Platform(["EEA", "DE"]).codes == area == sorted(area)


def test_export_wants_one_form(log, run):
    """None or two are a mistake."""
    assert run("export", log)[0] == 2
    assert run("export", log, "--csv", "--dsa")[0] == 2


@pytest.mark.parametrize(
    ("form", "option"),
    [
        (["--csv"], ["--action", "block"]),
        (["--csv"], ["--territory", "DE"]),
        (["--csv"], ["--terms-url", "https://example.org"]),
        (["--postgres", "host=nowhere"], ["--since", "7d"]),
        (["--postgres", "host=nowhere"], ["--until", "2026-01-01"]),
        (["--schema"], ["--output", "table.sql"]),
    ],
)
def test_what_a_form_would_pass_over_is_refused(log, run, form, option):
    """Nobody takes all calls for those that were asked for."""
    code, out, errors = run("export", log, *form, *option)
    assert (code, out, errors.startswith(f"error: {option[0]}: goes with ")) == (2, "", True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_is_not_made_a_file(log, run, tmp_path):
    """An export never takes the place of a pipe or a device."""
    os.mkfifo(tmp_path / "pipe")
    code, _, errors = run("export", log, "--csv", "--output", tmp_path / "pipe")
    assert (code, "is a device or a pipe" in errors) == (1, True)
    assert (tmp_path / "pipe").is_fifo()


def test_an_export_follows_no_link_that_waits_for_it(log, run, tmp_path):
    """In a folder where others may write, too, only the file that is named is written."""
    (tmp_path / "other").write_text("as it was")
    (tmp_path / f".calls.csv.{os.getpid()}").symlink_to(tmp_path / "other")

    assert run("export", log, "--csv", "--output", tmp_path / "calls.csv")[0] == 0
    assert (tmp_path / "other").read_text() == "as it was"
    assert not (tmp_path / "calls.csv").is_symlink()


def test_an_export_that_fails_leaves_the_file_before_it(log, run, tmp_path):
    """As does one of a folder without a log."""
    (tmp_path / "empty").mkdir()
    kept = tmp_path / "calls.csv"
    kept.write_text("before")

    assert run("export", tmp_path / "empty", "--csv", "--output", kept)[0] == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["calls.csv"]
    assert kept.read_text() == "before"
    assert run("export", log, "--csv", "--output", kept)[0] == 0
    assert kept.read_text().startswith("decision_id,")
