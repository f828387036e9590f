"""The copy in PostgreSQL, against a real server that the test starts for itself."""

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import time

import pytest
from logs import call, make_log

from apl_guard import InvalidInput, StorageFailed
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.postgres import SCHEMA, export_to_postgres
from apl_guard.audit.reading import read_log
from apl_guard.audit.row import bytes_read
from apl_guard.audit.verify import Verdict, verify_log

psycopg = pytest.importorskip("psycopg", reason="needs psycopg (pip install 'apl-guard[postgres]')")


def program(name):
    """A program of the server, which Debian keeps out of the way."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    if found is None:
        pytest.skip(f"needs the program {name} of PostgreSQL (apt-get install postgresql)")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on a socket in a folder of its own, run by a user without rights; its connection string."""
    folder = tmp_path_factory.mktemp("postgres")
    initdb, postgres = program("initdb"), program("postgres")
    as_user = []
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            nobody = pwd.getpwnam("postgres")
        except KeyError:
            nobody = pwd.getpwnam("nobody")
        folder = tmp_path_factory.getbasetemp().parent / f"postgres-{os.getpid()}"
        folder.mkdir()
        for path in [folder, *folder.parents][:-1]:
            if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o001)  # it must be able to reach its folder
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user = [shutil.which("setpriv"), f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    data = folder / "data"
    command = [*as_user, initdb, "-D", str(data), "-U", "owner", "-A", "trust", "--no-sync"]
    made = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if made.returncode:
        pytest.skip(f"PostgreSQL cannot be set up here: {made.stderr.strip().splitlines()[-1:]}")
    command = [*as_user, postgres, "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-F"]
    with (tmp_path_factory.mktemp("log") / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
    address = f"host={folder} dbname=postgres"
    try:
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"{address} user=owner").close()
                break
            time.sleep(0.1)
        else:
            pytest.fail("the server does not answer")
        yield address
    finally:
        running.terminate()
        running.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def table(server):
    """The table, and a role that may insert and nothing else: what the owner may do, and the role's address."""
    with psycopg.connect(f"{server} user=owner", autocommit=True) as owner:
        owner.execute("DROP TABLE IF EXISTS apl_guard_audit")
        owner.execute("DO $$ BEGIN CREATE ROLE writer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        owner.execute(SCHEMA)
        owner.execute("GRANT INSERT ON apl_guard_audit TO writer")
        yield owner, f"{server} user=writer"


def rows(owner):
    return owner.execute("SELECT writer, seq, line FROM apl_guard_audit ORDER BY writer, seq").fetchall()


def test_every_record_is_copied_once(table, folders):
    """Again and again, over restarts, and where nobody knows any more how far the last export came."""
    owner, address = table
    log, witness = folders
    make_log(log, witness, calls=10, writers=2)
    expected = [(f.record.writer, f.record.seq, f.line.content.decode()) for f in read_log(log)]

    assert export_to_postgres(log, address) == len(expected)
    assert rows(owner) == expected
    assert export_to_postgres(log, address) == 0

    durable = DurableLog(log, [witness])
    call(durable, 77)
    assert export_to_postgres(log, address) > 0
    durable.close()
    export_to_postgres(log, address)
    for path in log.glob("export-*.json"):
        path.unlink()
    assert export_to_postgres(log, address) > len(expected)
    assert rows(owner) == [(f.record.writer, f.record.seq, f.line.content.decode()) for f in read_log(log)]
    assert owner.execute("SELECT count(*) FROM apl_guard_audit WHERE decision_id = %s", [f"{77:032x}"]).fetchone() == (
        2,
    )


def test_an_export_reads_what_is_new_and_not_each_segment_again(table, folders):
    """An hourly one of a service that was restarted each day for a year would read most of the log each hour."""
    log, witness = folders
    make_log(log, witness, calls=40, writers=4, segment_bytes=1 << 20)
    export_to_postgres(log, table[1])
    with DurableLog(log, [witness]) as durable:
        call(durable, 77)
    read = []
    before = bytes_read.set(read.append)
    try:
        assert export_to_postgres(log, table[1]) == 4
    finally:
        bytes_read.reset(before)

    assert sum(read) < 10_000 < sum(path.stat().st_size for path in (log / "segments").iterdir())


def test_an_export_goes_on_behind_a_record_that_a_power_cut_took(table, folders):
    """It was read before the call that wrote it knew that it was on disk."""
    log, witness = folders
    make_log(log, witness, calls=3, writers=1, segment_bytes=1 << 20)
    (segment,) = (log / "segments").iterdir()
    whole = segment.read_bytes()
    export_to_postgres(log, table[1])
    segment.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert export_to_postgres(log, table[1]) == 0
    segment.write_bytes(whole)
    assert export_to_postgres(log, table[1]) == 0


def test_what_the_database_does_not_take_is_sent_the_next_time(table, folders, monkeypatch):
    """And what it took before that stays, so that a long export goes on where it was stopped."""
    owner, address = table
    log, witness = folders
    make_log(log, witness, calls=10, writers=2)
    monkeypatch.setattr("apl_guard.audit.postgres._BATCH", 5)
    owner.execute("ALTER TABLE apl_guard_audit ADD CONSTRAINT no_more CHECK (seq < 12)")
    with pytest.raises(StorageFailed, match="does not take"):
        export_to_postgres(log, address)
    taken = len(rows(owner))
    assert taken == 10

    owner.execute("ALTER TABLE apl_guard_audit DROP CONSTRAINT no_more")
    expected = [(f.record.writer, f.record.seq, f.line.content.decode()) for f in read_log(log)]
    assert export_to_postgres(log, address) == len(expected) - taken
    assert rows(owner) == expected


def test_what_a_damaged_log_lacks_is_said(table, folders, caplog):
    """As in every answer: nothing behind the first bad record of a writer is sent."""
    log, witness = folders
    make_log(log, witness, calls=3, writers=2)
    segment = sorted((log / "segments").iterdir())[0]
    segment.write_bytes(segment.read_bytes().replace(b"anonymize", b"allowance", 1))

    sent = export_to_postgres(log, table[1])

    assert sent == len(list(read_log(log)))
    assert f"{segment.name[:24]}: record 1 is not the one that" in caplog.messages[0]


def test_the_role_can_insert_and_nothing_else(table, folders):
    """It can neither read nor change nor remove, not even what it wrote itself."""
    _, address = table
    make_log(*folders, calls=1, writers=1)
    export_to_postgres(folders[0], address)
    for command in (
        "SELECT * FROM apl_guard_audit",
        "UPDATE apl_guard_audit SET line = ''",
        "DELETE FROM apl_guard_audit",
        "TRUNCATE apl_guard_audit",
        "DROP TABLE apl_guard_audit",
    ):
        with psycopg.connect(address) as role, pytest.raises(psycopg.errors.InsufficientPrivilege):
            role.execute(command)


def test_the_copy_verifies_as_the_original(table, folders, tmp_path):
    """The lines from the database, put into files again, are what the checkpoints seal."""
    owner, address = table
    log, witness = folders
    make_log(log, witness, calls=3, writers=1, segment_bytes=1 << 20)
    export_to_postgres(log, address)
    (segment,) = (log / "segments").iterdir()
    segment.write_text("".join(line + "\n" for _, _, line in rows(owner)))
    assert verify_log(log, [witness]).verdict == Verdict.VALID

    owner.execute("UPDATE apl_guard_audit SET line = replace(line, 'anonymize', 'allowance') WHERE seq = 2")
    segment.write_text("".join(line + "\n" for _, _, line in rows(owner)))
    assert verify_log(log, [witness]).verdict == Verdict.TAMPERED


def test_a_database_that_is_not_there(table, folders):
    """One line that says so; the log itself does not mind."""
    make_log(*folders, calls=1, writers=1)
    with pytest.raises(StorageFailed, match="does not take"):
        export_to_postgres(folders[0], "host=/nowhere dbname=postgres user=writer")
    with pytest.raises(StorageFailed, match="does not take"):
        export_to_postgres(folders[0], table[1].replace("dbname=postgres", "dbname=nothing"))
    with pytest.raises(InvalidInput, match="no connection string"):
        export_to_postgres(folders[0], "nothing at all=")


def test_a_database_that_does_not_answer_ends_an_export_where_the_address_says_so(table, folders):
    """As the page says; without it, exports of a timer would pile up. The next one sends everything."""
    owner, address = table
    make_log(*folders, calls=1, writers=1)
    with owner.transaction():
        owner.execute("LOCK TABLE apl_guard_audit")
        with pytest.raises(StorageFailed, match="statement timeout"):
            export_to_postgres(folders[0], f"{address} options='-c statement_timeout=500'")
    assert export_to_postgres(folders[0], address) > 0
