"""The commands of the log with whatever a shell can hand them: one line that says what to do, never a traceback."""

import json
import os
import subprocess
import sys

import instant
import pytest
from logs import make_log

from apl_guard import AuditUnavailable, Guard, backend
from apl_guard.audit import AuditLog

WRONG = "\udcff\x1b[31m"
"""As Python reads an argument that is no text: a byte that is no UTF-8, and a colour."""


@pytest.fixture
def log(folders):
    """A small log, with its witness beside it."""
    make_log(*folders, calls=3, writers=1)
    return folders[0]


def run(*arguments, given=b""):
    """The program in a process of its own; its exit code, output and errors."""
    command = [sys.executable, "-m", "apl_guard", "audit", *map(os.fsencode, map(str, arguments))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=given, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["query", "LOG", "--decision", WRONG], 2),
        (["query", "LOG", "--tenant", WRONG], 2),
        (["query", "LOG", "--where", f"route={WRONG}"], 2),
        (["query", "LOG", "--prompt", "-"], 2),
        (["query", "LOG", "--prompt", WRONG], 0),
        (["export", "LOG", "--postgres", WRONG], 2),
        (["export", "LOG", "--csv", "--output", f"LOG/{WRONG}"], 0),
        (["prove", "LOG", WRONG], 2),
        (["verify", WRONG], 4),
    ],
)
def test_bytes_that_are_no_text_are_no_traceback(log, arguments, code):
    """Whether they come as an argument or through a pipe."""
    found, out, errors = run(*(str(a).replace("LOG", str(log)) for a in arguments), given=b"\xff a prompt\0")

    assert "Traceback" not in errors
    assert (found, errors.startswith("error: "), errors.count("\n")) == (code, code != 0, int(code != 0))
    assert "\x1b" not in out


def test_what_a_terminal_cannot_show_is_written_out(log):
    """The name of a file may hold any byte."""
    decision = json.loads(run("query", log, "--event", "guard.decision", "--json")[1].splitlines()[0])["decision_id"]
    code, out, errors = run("prove", log, decision, "--output", log / "\udcff.json")
    assert (code, out, errors) == (0, f"{log}/\\udcff.json written\n", "")


def test_a_prompt_is_read_as_it_is(folders, monkeypatch):
    """With both letters at the ends of its lines, and half of a surrogate pair."""
    monkeypatch.setitem(backend._BUILT_IN, "instant", "instant:Adapter")
    log, _ = folders
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), "unsafe_allow_all", audit=audit)
        guard("a cat\r\nand a dog\n")
    found = run("query", log, "--prompt", "-", given=b"a cat\r\nand a dog\n\n")[1]
    assert found.count("guard.decision") == 1


def test_the_verdict_does_not_depend_on_who_reads_it(log):
    """Where the other end of the pipe is closed, as by `head`, the exit code is the verdict."""
    command = [sys.executable, "-m", "apl_guard", "audit", "verify", str(log), "--witness", str(log.parent / "witness")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_does_not_make_a_log_tampered(log):
    """Where the verdict cannot be printed, the exit code is that of the log, not the 1 of tampering."""
    command = [sys.executable, "-m", "apl_guard", "audit", "verify", str(log), "--witness", str(log.parent / "witness")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr.count(b"\n"), b"cannot be printed" in done.stderr) == (0, 1, True)


def test_an_export_to_a_closed_output_is_a_line(log):
    """As by `>&-`, where Python has no standard output at all."""
    command = [sys.executable, "-m", "apl_guard", "audit", "export", str(log), "--csv"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.startswith(b"error: --output: "), done.stderr.count(b"\n")) == (2, True, 1)


class TestAnotherAccount:
    """Root may write everywhere, and what it writes the account of the guards could not read."""

    @pytest.fixture
    def theirs(self, log):
        if os.geteuid() != 0:
            pytest.skip("needs the right to give files away")
        for path in [log, *log.rglob("*")]:
            os.chown(path, 65534, 65534)
        return log

    def test_nothing_is_written_into_its_log(self, theirs):
        """Neither by a guard nor by a command: no file of another owner, no key destroyed."""
        before = sorted(theirs.rglob("*"))
        key = (theirs / "keys" / "digest.key").read_bytes()

        with pytest.raises(AuditUnavailable, match="belongs to account nobody"):
            AuditLog(theirs)
        for command in (
            ["erase", theirs, "--subject", "x"],
            ["keys", "rotate", theirs],
            ["keys", "destroy", theirs, "x"],
        ):
            code, _, errors = run(*command)
            assert (code, "run it as the account that owns the log" in errors) == (4, True)

        assert sorted(theirs.rglob("*")) == before
        assert (theirs / "keys" / "digest.key").read_bytes() == key

    def test_its_log_is_verified_all_the_same(self, theirs):
        """Reading leaves nothing behind."""
        before = sorted(theirs.rglob("*"))
        assert run("verify", theirs, "--witness", theirs.parent / "witness")[0] == 0
        assert sorted(theirs.rglob("*")) == before


def test_a_key_that_may_not_be_read_is_not_looked_for_in_a_backup(log, monkeypatch):
    """It is there; another account has to read it."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    from apl_guard.audit.disk import read_private

    with pytest.raises(AuditUnavailable, match="run this as the account that owns the log"):
        read_private(log / "keys" / "digest.key")


def test_an_answer_from_a_damaged_log_says_what_it_lacks(log):
    """What stands after the first bad record is in no answer and no export, and nobody takes it for all there is."""
    (segment,) = (log / "segments").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b'"result":"passed"', b'"result":"pissed"', 1))

    for command in (["query", log], ["tail", log], ["stats", log], ["policies", log], ["export", log, "--csv"]):
        index = [] if command[0] in ("policies", "export") else ["--index", log.parent / f"{command[0]}.sqlite"]
        code, _, errors = run(*command, *index)
        assert code == 0
        assert errors.count("\n") == 1
        assert "record 2 is not the one that record 3 names" in errors
        assert f"nothing after it is in this answer: apl-guard audit verify {log}" in errors
