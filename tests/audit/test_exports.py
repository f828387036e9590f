"""The log in forms that others ask for: a table, and statements of reasons."""

import csv
import io
import json
import os
from collections import Counter

import pytest
from logs import expected

from apl_guard.audit.export import Platform, calls, statements, write_csv


def test_csv_has_one_row_for_each_call(log, run, tmp_path):
    """And no cell that a spreadsheet would run."""
    assert run("export", log, "--csv", "--output", tmp_path / "calls.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "calls.csv").read_text())))

    assert len(rows) == 12
    assert Counter(row["result"] for row in rows) == Counter(str(row["result"]) for row in calls(log))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+-@" and cell]
    assert {row["tenant"] for row in rows if row["tenant"]} == {"acme", "'=cmd|' /C calc'!A0"}
    assert run("export", log, "--csv", "--until", "2020-01-01")[1].count("\n") == 1


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_is_a_formula(begin):
    """Nor in a spreadsheet that takes wide letters for narrow ones. Other names of tenants come back as they were."""
    tenants = [f"{begin}1+1", 'a,"b"; c', "'x", "\u00fc\n2"]
    stream = io.StringIO()
    assert write_csv(iter([{"tenant": tenant} for tenant in tenants]), stream) == len(tenants)

    rows = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert [row["tenant"] for row in rows] == ["'" + tenants[0], *tenants[1:]]


# The fields of the statement of reasons and the values that the database takes for them, from its API's description.
FIELDS = {
    "puid": str,
    "decision_visibility": {"DECISION_VISIBILITY_CONTENT_DISABLED", "DECISION_VISIBILITY_OTHER"},
    "decision_visibility_other": str,
    "decision_ground": {"DECISION_GROUND_INCOMPATIBLE_CONTENT"},
    "decision_ground_reference_url": str,
    "incompatible_content_ground": str,
    "incompatible_content_explanation": str,
    "incompatible_content_illegal": {"Yes", "No"},
    "content_type": {"CONTENT_TYPE_SYNTHETIC_MEDIA"},
    "category": {"STATEMENT_CATEGORY_DATA_PROTECTION_AND_PRIVACY_VIOLATIONS"},
    "territorial_scope": {"DE", "FR"},
    "content_date": str,
    "application_date": str,
    "decision_facts": str,
    "source_type": {"SOURCE_VOLUNTARY"},
    "automated_detection": {"Yes", "No"},
    "automated_decision": {"AUTOMATED_DECISION_FULLY"},
}
REQUIRED = FIELDS.keys() - {"decision_visibility_other", "decision_ground_reference_url"}


def test_statements_of_reasons(log, run):
    """The database's own field names and values; each decision once, with an id that is never used again."""
    arguments = ["--dsa", "--territory", "FR", "--territory", "DE", "--action", "block", "--action", "anonymize"]
    code, out, _ = run("export", log, *arguments, "--terms-url", "https://example.org/terms")
    found = [json.loads(line) for line in out.splitlines()]

    assert code == 0
    decided = [r["decision_id"] for r in expected(log, event="guard.decision") if r["effective_action"] != "allow"]
    ended = {r["decision_id"]: r["result"] for r in expected(log, event="guard.outcome")}
    # About a call that gave no image because something broke, there is nothing to state.
    assert sorted(s["puid"] for s in found) == sorted(d for d in decided if ended[d] in ("blocked", "passed"))
    assert set(ended.values()) > {"blocked", "passed"}
    for statement in found:
        assert statement.keys() >= REQUIRED
        assert statement.keys() <= FIELDS.keys()
        for name, value in statement.items():
            allowed = FIELDS[name]
            if allowed is str:
                assert isinstance(value, str)
                assert value
            else:
                assert set(value if isinstance(value, list) else [value]) <= allowed
        assert ("decision_visibility_other" in statement) == ("OTHER" in statement["decision_visibility"][0])
        assert len(statement["application_date"]) == 10
    blocked = list(statements(calls(log), Platform()))
    assert len(blocked) == len([r for r in expected(log, event="guard.decision") if r["action"] == "block"])
    assert run("export", log, "--dsa", "--territory", "XX")[0] == 2


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
