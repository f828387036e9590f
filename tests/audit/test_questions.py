"""Questions and exports: whatever the index says stands in the log, and nothing of the log is missing from it."""

import contextlib
import csv
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter

import instant
import pytest
from logs import call, make_log

from apl_guard import Guard, InvalidInput, PolicyBlocked, backend, cli
from apl_guard.audit import AuditLog
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.export import Platform, calls, statements
from apl_guard.audit.index import Index
from apl_guard.audit.question import COLUMNS, Question
from apl_guard.audit.reading import read_log


@pytest.fixture(autouse=True)
def adapter(monkeypatch):
    """The guard finds the adapter of the instant backend as it finds a built-in one."""
    monkeypatch.setitem(backend._BUILT_IN, "instant", "instant:Adapter")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the program in this process; its exit code and output."""

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["apl-guard", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr()

    return go


@pytest.fixture
def log(folders, prefix):
    """Calls of all kinds, for two tenants."""
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        for number in range(12):
            tenant = "acme" if number % 3 else "=cmd|' /C calc'!A0"
            with guard.context(tenant=tenant), contextlib.suppress(RuntimeError, InvalidInput, PolicyBlocked):
                guard(*[("a cat",), ("break",), (7,)][number % 3], **({"odd": 1} if number % 4 == 0 else {}))
    return log


def expected(log, **conditions):
    """The answer without an index: every record, looked at one by one."""

    def value(fields, name):
        for part in COLUMNS[name][2:].split("."):
            fields = (fields or {}).get(part)
        return fields

    return [f.fields for f in read_log(log) if all(value(f.fields, n) == wanted for n, wanted in conditions.items())]


def test_answers_are_those_of_reading_every_record(log):
    """For each column and each value that occurs in it."""
    with Index(log) as index:
        assert index.update() == len(expected(log))
        assert index.update() == 0
        for name in COLUMNS:
            groups = index.ask(Question({}, group_by=[name], limit=1000))
            assert sum(group["count"] for group in groups) == len(expected(log))
            for group in groups:
                if group[name] is not None:
                    found = index.ask(Question({name: group[name]}, limit=1000))
                    key = lambda r: (r["writer"], r["seq"])  # noqa: E731
                    wanted = expected(log, **{name: group[name]})
                    assert sorted(map(key, found)) == sorted(map(key, wanted))
                    assert len(found) == group["count"]


def test_the_index_grows_with_the_log(folders):
    """Over segments and writers, and while it is written."""
    log, witness = folders
    with pytest.raises(InvalidInput, match="holds no audit log"):
        Index(log)
    make_log(log, witness, calls=5, writers=2)
    with Index(log) as index:
        first = index.update()
        durable = DurableLog(log)
        for number in range(5):
            call(durable, 1000 + number)
            assert index.update() > 0
        durable.close()
        index.update()
        total = sum(group["count"] for group in index.ask(Question({}, group_by=["event"])))
    assert total == len(list(read_log(log))) > first


def test_an_index_with_other_columns_is_made_anew(log, run):
    """As another version of this package made it: SQLite takes a column that is not there for a text, and answers."""
    assert run("query", log)[0] == 0
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as database:
        database.executescript("ALTER TABLE records DROP COLUMN protection; PRAGMA user_version=0")
    passed = len(expected(log, result="passed"))
    assert json.loads(run("stats", log, "--json")[1].out)["protection"] == {"applied": passed}


def test_hidden_entries_are_found(log, run):
    """CVE-2023-31437: what is sealed must also be what is shown. A doctored index is found and made anew."""
    witness = log.parent / "witness"
    assert run("query", log, "--event", "guard.decision")[1].out.count("\n") == 8
    assert run("verify", log, "--witness", witness)[0] == 0
    chance = random.Random(5)
    for attack in (
        "DELETE FROM records WHERE event = 'guard.decision'",
        'UPDATE records SET line = replace(line, \'"action":"block"\', \'"action":"allow"\')',
        "UPDATE records SET seq = seq + 1000 WHERE event = 'guard.outcome'",
        "INSERT INTO records VALUES ('ffffffffffffffffffffffff', 0, 0, '{\"event\":\"x\"}')",
    ):
        with sqlite3.connect(log / "index.sqlite") as database:
            database.execute(attack)
        database.close()
        code, captured = run("verify", log, "--witness", witness)
        assert code == 1, attack
        assert "index: " in captured.out
        assert run("reindex", log)[0] == 0
        assert run("verify", log, "--witness", witness)[0] == 0
    with sqlite3.connect(log / "index.sqlite") as database:
        # What is missing at the end is added before the next answer, as if it were new.
        database.execute("DELETE FROM records WHERE seq > 3")
    database.close()
    assert run("query", log, "--event", "guard.decision")[1].out.count("\n") == 8
    for content in (b"", b"no database", bytes(chance.randrange(256) for _ in range(5000))):
        (log / "index.sqlite").write_bytes(content)
        assert run("query", log, "--event", "guard.decision")[1].out.count("\n") == 8


def test_query_groups_and_filters(log, run):
    """The command of the documentation, and its mistakes."""
    code, captured = run("query", log, "--since", "1h", "--action", "block", "--group-by", "policy")
    assert code == 0
    assert captured.out.split() == [str(len(expected(log, action="block"))), "anonymize_faces"]
    assert run("query", log, "--until", "2020-01-01")[1].out == "nothing found\n"
    rows = [json.loads(line) for line in run("query", log, "--where", "result=passed", "--json")[1].out.splitlines()]
    assert [row["result"] for row in rows] == ["passed"] * len(expected(log, result="passed"))
    for wrong in (["--where", "nothing"], ["--where", "nothing=1"], ["--group-by", "line"], ["--since", "yesterday"]):
        code, captured = run("query", log, *wrong)
        assert (code, captured.err.count("\n")) == (2, 1)


def test_a_value_that_looks_like_a_number_is_found_as_text_and_as_number(folders, prefix, run):
    """A tenant may be called 123; a version is a number. No digit of any script is a traceback."""
    log, _ = folders
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        for tenant in ("123", "1e3", "other", "\u00b2"):
            with guard.context(tenant=tenant):
                guard("a cat")
    for tenant in ("123", "1e3", "\u00b2"):
        assert run("query", log, "--where", f"tenant={tenant}")[1].out.count("\n") == 1
    version = expected(log, event="guard.decision")[0]["policy"]["version"]
    where = ["--event", "guard.decision", "--where", f"policy_version={version}"]
    assert run("query", log, *where)[1].out.count("\n") == 4
    for wrong in ("\u00b2h", "99999999999d", "0001-01-01T00:00+14:00", "-1h", "9" * 30 + "s"):
        code, captured = run("query", log, "--since", wrong)
        assert (code, captured.err.count("\n")) == (2, 1), wrong


def test_tail_and_stats(log, run):
    """The newest records in order, and counts that add up."""
    lines = run("tail", log, "-n", "3")[1].out.splitlines()
    assert len(lines) == 3
    assert lines == sorted(lines)
    assert "audit.close" in lines[-1]
    found = json.loads(run("stats", log, "--json")[1].out)
    assert found["events"]["guard.decision"] == found["events"]["guard.outcome"] == sum(found["results"].values())
    assert found["open"] == {"decisions without outcome": 0}
    assert "guard.refusal" in run("stats", log)[1].out


def test_csv_has_one_row_for_each_call(log, run, tmp_path):
    """And no cell that a spreadsheet would run."""
    assert run("export", log, "--csv", "--output", tmp_path / "calls.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "calls.csv").read_text())))

    assert len(rows) == 12
    assert Counter(row["result"] for row in rows) == Counter(str(row["result"]) for row in calls(log))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+-@" and cell]
    assert {row["tenant"] for row in rows if row["tenant"]} == {"acme", "'=cmd|' /C calc'!A0"}
    assert run("export", log, "--csv", "--until", "2020-01-01")[1].out.count("\n") == 1


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
    code, captured = run("export", log, *arguments, "--terms-url", "https://example.org/terms")
    found = [json.loads(line) for line in captured.out.splitlines()]

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


def test_prove_and_verify_a_receipt(log, run, tmp_path):
    """From the shell: made by one, checked by another, changed by a third."""
    decision = expected(log, event="guard.decision")[0]["decision_id"]
    receipt = tmp_path / "receipt.json"
    key = json.loads((log / "log.json").read_text())["root"]

    assert run("prove", log, decision, "--output", receipt)[0] == 0
    assert run("verify", receipt, "--public-key", key)[0] == 0
    assert run("verify", receipt)[0] == 3
    assert run("verify", receipt, "--public-key", "0" * 64)[0] == 1
    receipt.write_text(receipt.read_text().replace("anonymize_faces", "unsafe_allow_al"))
    assert run("verify", receipt, "--public-key", key)[0] == 1
    assert run("prove", log, "nothing")[0] == 2
    assert run("consistency", log, 0, 1)[0] == 0
    assert run("consistency", log, 1, 0)[0] == 2


def test_erase_and_reveal_from_the_shell(folders, prefix, run):
    """What was encrypted is shown until it is erased."""
    log, witness = folders
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with guard.context(subject="account-7"):
            guard("a cat")
    decision = expected(log, event="guard.decision")[0]["decision_id"]

    assert json.loads(run("reveal", log, decision, "--witness", witness)[1].out) == {"prompt": ["a cat"]}
    assert run("erase", log, "--subject", "account-7", "--witness", witness)[0] == 0
    assert "erased" in run("reveal", log, decision, "--witness", witness)[1].out
    assert run("erase", log, "--subject", "account-7", "--witness", witness)[0] == 2
    assert run("erase", log)[0] == 2
    assert run("verify", log, "--witness", witness)[0] == 0


@pytest.mark.parametrize(
    "command", ["query", "tail", "stats", "policies", "prove", "consistency", "export", "erase", "reveal", "reindex"]
)
def test_a_folder_without_a_log_is_one_line_and_code_2(run, tmp_path, command):
    """For every command, with the arguments that it needs."""
    more = {
        "prove": ["d"],
        "reveal": ["d"],
        "consistency": ["0", "1"],
        "export": ["--csv"],
        "erase": ["--decision", "d"],
    }
    code, captured = run(command, tmp_path, *more.get(command, []))

    assert code in {2, 4}
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_log_on_a_disk_that_cannot_be_written_is_verified_and_asked(log, run, tmp_path):
    """Such as one that was put away: its index speaks for nothing bad, and answers come with an index elsewhere."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    assert run("query", log)[0] == 0
    there, witness = tmp_path / "there", tmp_path / "witness"
    there.mkdir()
    if subprocess.run(["mount", "--bind", log, there], capture_output=True).returncode:
        pytest.skip("cannot mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        assert run("verify", there, "--witness", witness)[0] == 0
        assert run("query", there)[0] == 1
        assert run("query", there, "--index", tmp_path / "index.sqlite", "--result", "passed")[0] == 0
    finally:
        subprocess.run(["umount", "-l", there], check=True)
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as database:
        database.execute("DELETE FROM records WHERE event = 'guard.decision'")
        database.commit()
    subprocess.run(["mount", "--bind", log, there], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        assert run("verify", there, "--witness", witness)[0] == 1
    finally:
        subprocess.run(["umount", "-l", there], check=True)


def test_a_file_that_is_no_index_stays_as_it_is(log, run, tmp_path):
    """Named by mistake: a text, and a database of somebody else."""
    text, database = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("mine " * 100)
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE records (a)")
        other.commit()
    before = text.read_bytes(), database.read_bytes()

    for path in (text, database):
        code, captured = run("query", log, "--index", path)
        assert (code, "is no index" in captured.err) == (1, True)
    assert (text.read_bytes(), database.read_bytes()) == before
    assert run("query", log, "--index", tmp_path / "new")[0] == 0
    assert run("query", log, "--index", tmp_path / "new")[0] == 0


def test_an_index_of_another_version_is_made_anew(log, run):
    """One whose columns are others; it is a copy, after all."""
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as old:
        old.execute("CREATE TABLE records (writer, seq, line)")
        old.commit()

    assert run("query", log, "--result", "passed")[0] == 0


def test_an_index_that_somebody_else_holds_is_left_to_them(log, run, monkeypatch):
    """It is one line and a code, and the index is not thrown away under them."""
    assert run("query", log)[0] == 0
    inode = (log / "index.sqlite").stat().st_ino
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, **named | {"timeout": 0.01}))
    with contextlib.closing(connect(log / "index.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        DurableLog(log).close()  # something new, that has to go into the index
        code, captured = run("query", log)

    assert (code, "locked" in captured.err) == (1, True)
    assert (log / "index.sqlite").stat().st_ino == inode


def test_following_shows_every_record_once(log):
    """Also where more come at once than one look shows; each writer in its order."""
    with Index(log) as index:
        index.update()
        known = index.places()
        with DurableLog(log) as more:
            for number in range(30):
                call(more, 100 + number)
        index.update()
        found, new = [], True
        while new:
            new = index.newer(known, limit=7)
            found += new
            known |= {row["writer"]: row["seq"] for row in new}

    places = [(row["writer"], row["seq"]) for row in found]
    assert len(set(places)) == len(places) == 62  # with the records that begin and end a writer
    assert places == sorted(places)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--action", "blocked"], "'blocked' is not one of"),
        (["query", "--result", "block"], "expected one of passed, blocked"),
        (["query", "--group-by", "polcy"], "did you mean 'policy'?"),
        (["query", "--until", "tomorrow"], "--until: found 'tomorrow'"),
        (["query", "--limit", "9" * 30], "'--limit'"),
        (["export", "--dsa", "--action", "blocked"], "'blocked' is not one of"),
    ],
)
def test_a_value_that_no_record_can_have_is_an_error(log, run, arguments, message):
    """Not an empty answer, from which somebody would conclude that nothing happened."""
    code, captured = run(arguments[0], log, *arguments[1:])
    assert (code, captured.out) == (2, "")
    assert message in " ".join(captured.err.replace("│", " ").split())
