"""The index: whatever it says stands in the log, and nothing of the log is missing from it."""

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from logs import TORTURE, call, expected, make_log

from apl_guard import InvalidInput, StorageFailed
from apl_guard.audit import disk
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.index import Index
from apl_guard.audit.index_file import open_database
from apl_guard.audit.newest import newest
from apl_guard.audit.question import COLUMNS, Question
from apl_guard.audit.reading import read_log, read_rows
from apl_guard.audit.record import Record
from apl_guard.audit.verify_index import differences

COMMAND = [sys.executable, "-m", "apl_guard", "audit"]
ROUNDS = 30 if TORTURE else 1


def test_answers_are_those_of_reading_every_record(log):
    """For each column and each value that occurs in it. Nobody can read them who cannot read the records."""
    with Index(log) as index:
        assert index.update() == len(expected(log))
        assert not any(file.stat().st_mode & 0o007 for file in log.glob("index.sqlite*"))
        assert index.update() == 0
        for name in COLUMNS:
            groups = list(index.ask(Question({}, group_by=[name], limit=1000)))
            assert sum(group["count"] for group in groups) == len(expected(log))
            for group in groups:
                if group[name] is not None:
                    found = list(index.ask(Question({name: group[name]}, limit=1000)))
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
    assert json.loads(run("stats", log, "--json")[1])["protection"] == {"applied": passed}


def test_an_index_of_another_version_is_made_anew(log, run):
    """One whose columns are others; it is a copy, after all."""
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as old:
        old.execute("CREATE TABLE records (writer, seq, line)")
        old.commit()

    assert run("query", log, "--result", "passed")[0] == 0


def test_an_index_of_another_version_is_no_tampering(log, run):
    """As after an upgrade: verify notes it, and the next question makes it anew."""
    witness = log.parent / "witness"
    wanted = run("query", log)[1]
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as old:
        old.executescript("DROP TABLE records; CREATE TABLE records (writer, seq, line); PRAGMA user_version=7")

    code, out, _ = run("verify", log, "--witness", witness)

    assert (code, "made by another version" in out) == (0, True)
    assert run("query", log)[1] == wanted
    assert "another version" not in run("verify", log, "--witness", witness)[1]


def test_hidden_entries_are_found(log, run):
    """CVE-2023-31437: what is sealed must also be what is shown. A doctored index is found and made anew."""
    witness = log.parent / "witness"
    assert run("query", log, "--event", "guard.decision")[1].count("\n") == 8
    assert run("verify", log, "--witness", witness)[0] == 0
    chance = random.Random(5)
    for attack in (
        "DELETE FROM records WHERE event = 'guard.decision'",
        'UPDATE records SET line = replace(line, \'"action":"block"\', \'"action":"allow"\')',
        "UPDATE records SET offset = 'nowhere'",
        "UPDATE records SET offset = -1, segment = 2",
        "UPDATE records SET seq = seq + 1000 WHERE event = 'guard.outcome'",
        "INSERT INTO records VALUES ('ffffffffffffffffffffffff', 0, 0, 0, '{\"event\":\"x\"}')",
    ):
        with sqlite3.connect(log / "index.sqlite") as database:
            database.execute(attack)
        database.close()
        code, out, _ = run("verify", log, "--witness", witness)
        assert code == 1, attack
        assert "index: " in out
        assert run("reindex", log)[0] == 0
        assert run("verify", log, "--witness", witness)[0] == 0
    with sqlite3.connect(log / "index.sqlite") as database:
        # What is missing at the end is added before the next answer, as if it were new.
        database.execute("DELETE FROM records WHERE seq > 3")
    database.close()
    assert run("query", log, "--event", "guard.decision")[1].count("\n") == 8
    for content in (b"", b"no database", bytes(chance.randrange(256) for _ in range(5000))):
        (log / "index.sqlite").write_bytes(content)
        assert run("query", log, "--event", "guard.decision")[1].count("\n") == 8


def test_columns_that_say_something_else_than_their_lines_are_found(log, run):
    """An index whose columns were filled by hand: verify says so, and the next answer comes from one made anew."""
    wanted = run("query", log, "--group-by", "action")[1]
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as database:
        names = [row[1] for row in database.execute("PRAGMA table_xinfo(records)")]
        columns = ", ".join(f'"{name}"' for name in names)
        rows = database.execute(f"SELECT {columns} FROM records").fetchall()
        database.executescript(f"DROP TABLE records; CREATE TABLE records({columns}, UNIQUE (writer, seq))")
        at = names.index("action")
        forged = [["allow" if place == at else value for place, value in enumerate(row)] for row in rows]
        database.executemany(f"INSERT INTO records VALUES ({', '.join('?' * len(names))})", forged)
        database.commit()

    code, out, _ = run("verify", log, "--witness", log.parent / "witness")

    assert (code, "index: " in out) == (1, True)
    assert run("query", log, "--group-by", "action")[1] == wanted
    assert run("verify", log, "--witness", log.parent / "witness")[0] == 0


def test_a_record_that_cannot_be_found_by_what_is_searched_for_is_a_finding(log, run):
    """Every line is there, but the tree by which results are looked up leaves some out."""
    assert run("query", log, "--result", "passed")[1] != "nothing found\n"
    tree = "by_result_timestamp"
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as database:
        database.execute("PRAGMA writable_schema=1")
        entry = database.execute("SELECT * FROM sqlite_schema WHERE name = ?", [tree]).fetchone()
        database.execute("DELETE FROM sqlite_schema WHERE name = ?", [tree])
        database.commit()
    with contextlib.closing(sqlite3.connect(log / "index.sqlite")) as database:
        rows = database.execute("SELECT writer, seq, segment, offset, line FROM records").fetchall()
        database.execute("DELETE FROM records")
        database.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("UPDATE records SET rowid = rowid + 1000000")
        database.execute("PRAGMA writable_schema=1")
        database.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", entry)
        database.commit()

    code, out, _ = run("verify", log, "--witness", log.parent / "witness")

    assert (code, "index: is damaged" in out) == (1, True)
    assert run("reindex", log)[0] == 0
    assert run("verify", log, "--witness", log.parent / "witness")[0] == 0


@pytest.mark.parametrize("commands", [["query", "query"], ["query", "reindex", "reindex"]])
def test_several_may_ask_at_once(folders, commands):
    """An index that is begun by all of them, or made anew by one while another asks: each has the whole answer."""
    log, witness = folders
    make_log(log, witness, calls=60, writers=2)
    asked = [*COMMAND, "query", str(log), "--group-by", "event"]
    told = [asked if command == "query" else [*COMMAND, command, str(log)] for command in commands]

    for _ in range(ROUNDS):
        if "reindex" not in commands:
            (log / "index.sqlite").unlink(missing_ok=True)
        running = [(command, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for command in told]
        answers = [(command, child.communicate()[0], child.returncode) for command, child in running]

        assert all(code == 0 for _, _, code in answers)
        assert all("       120  guard.decision" in text for command, text, _ in answers if command == asked)
        assert differences(log) == []


def test_those_who_begin_an_index_at_the_same_moment_wait_for_each_other(tmp_path):
    """None of them is told that the database is locked, which SQLite says at once where two turn it to write-ahead."""
    at_once = threading.Barrier(6)

    def begin(path):
        at_once.wait()
        open_database(path).close()

    with ThreadPoolExecutor(6) as pool:
        for number in range(1000 if TORTURE else 100):
            list(pool.map(begin, [tmp_path / f"{number}.sqlite"] * 6))


def test_what_was_added_before_an_interruption_stays(copy, monkeypatch):
    """The first look at a long log may take minutes; who stops it goes on later where it was."""
    log, _ = copy
    monkeypatch.setattr("apl_guard.audit.index._BATCH", 10)
    read = Record.parse
    seen = []

    def parse(content):
        seen.append(content)
        if len(seen) == 35:
            raise KeyboardInterrupt
        return read(content)

    with Index(log) as index:
        monkeypatch.setattr(Record, "parse", parse)
        with pytest.raises(KeyboardInterrupt):
            index.update()
        monkeypatch.setattr(Record, "parse", read)
        kept = sum(last + 1 for last in index.places().values())
        assert kept in (10, 20, 30)
        assert index.update() == len(expected(log)) - kept
        assert differences(log) == []


def test_a_large_index_does_not_fill_the_disk_of_the_log(copy, monkeypatch):
    """Nobody's question stops a service. What little is new is added all the same."""
    log, _ = copy
    room = shutil.disk_usage(log)
    with monkeypatch.context() as patch:
        patch.setattr("apl_guard.audit.index._BATCH", 10)
        patch.setattr(shutil, "disk_usage", lambda _: room._replace(free=room.total // 21))
        with Index(log) as index:
            with pytest.raises(StorageFailed, match="another disk with --index"):
                index.update()
            assert index.places() == {}
        patch.setattr(shutil, "disk_usage", lambda _: room._replace(total=1 << 30, free=300 << 20))
        with Index(log) as index:
            assert index.update() == len(expected(log))
            patch.setattr(shutil, "disk_usage", lambda _: room._replace(free=0))
            with pytest.raises(StorageFailed, match="another disk with --index"):
                index.rebuild()
            DurableLog(log).close()
            assert index.update() > 0
            assert differences(log) == []


def test_an_interrupted_reindex_leaves_the_index_that_was_there(log, monkeypatch):
    """All of it at once, or nothing."""

    def interrupt(_):
        raise KeyboardInterrupt

    with Index(log) as index:
        index.update()
        monkeypatch.setattr(Record, "parse", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index.rebuild()
        assert sum(last + 1 for last in index.places().values()) == sum(len(list(row)) for row in read_rows(log))


def test_looking_for_open_decisions_takes_work_in_proportion_to_the_log(tmp_path):
    """Counted in steps of SQLite's machine: four times the calls take about four times the steps, not sixteen times."""

    def steps(calls):
        log = tmp_path / str(calls)
        make_log(log, tmp_path / "witness", calls=calls, writers=1)
        taken = 0

        def count():
            nonlocal taken
            taken += 1

        with Index(log) as index:
            index.update()
            index._database.set_progress_handler(count, 10)
            assert index.open_decisions() == 0
        return taken

    assert steps(400) < 6 * steps(100)


def test_following_takes_work_in_proportion_to_what_is_new(tmp_path):
    """Twice a second: the index of a large log is not counted through each time, unless somebody else wrote to it."""

    def steps(calls):
        log = tmp_path / str(calls)
        make_log(log, tmp_path / "witness", calls=calls, writers=1)
        taken = []
        with Index(log) as index:
            index.update()
            shown = index.places()
            index._database.set_progress_handler(lambda: taken.append(1), 10)
            index.update()
            assert list(index.newer(shown)) == []
        return len(taken)

    assert steps(400) < 2 * steps(100)


def test_answers_take_little_memory_however_long_the_log(folders, monkeypatch):
    """Rows are read and printed one by one, and of the newest of each writer only the newest of all are kept."""

    def most_memory(answer):
        tracemalloc.start()
        try:
            return sum(1 for _ in answer()), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    log, _ = folders
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", lambda _: None)
        for _ in range(10):
            with DurableLog(log) as durable:
                for _ in range(500):
                    durable.append("guard.refusal", {"error": "x" * 500}, decision=None)
    with Index(log) as index:
        index.update()
        found, of_all = most_memory(lambda: index.ask(Question({"event": "guard.refusal"}, limit=10**9)))
        shown, of_newest = most_memory(lambda: newest(index, log, 500))

    assert (found, shown) == (5000, 500)
    assert of_all < 1 << 20
    assert of_newest < 3 << 20


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
        code, _, errors = run("query", log, "--index", path)
        assert (code, "is no index" in errors) == (1, True)
    assert (text.read_bytes(), database.read_bytes()) == before
    assert run("query", log, "--index", tmp_path / "new")[0] == 0
    assert run("query", log, "--index", tmp_path / "new")[0] == 0


def test_an_index_that_somebody_else_holds_is_left_to_them(log, run, monkeypatch):
    """It is one line and a code, and the index is not thrown away under them."""
    assert run("query", log)[0] == 0
    inode = (log / "index.sqlite").stat().st_ino
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, **named | {"timeout": 0.01}))
    with contextlib.closing(connect(log / "index.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        DurableLog(log).close()  # something new, that has to go into the index
        code, _, errors = run("query", log)

    assert (code, "locked" in errors) == (1, True)
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
            new = list(index.newer(known, limit=7))
            found += new
            known |= {row["writer"]: row["seq"] for row in new}

    places = [(row["writer"], row["seq"]) for row in found]
    assert len(set(places)) == len(places) == 62  # with the records that begin and end a writer
    assert places == sorted(places)
