"""How far reading has come: told to whoever watches, and shown on a terminal."""

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from logs import call

from apl_guard.audit.durable import DurableLog
from apl_guard.audit.index import Index
from apl_guard.audit.reading import read_log
from apl_guard.audit.row import Row, bytes_read
from apl_guard.audit.segment_files import segment_name, writers_in
from apl_guard.audit.verify import verify_log

SLOW = "import apl_guard.cli.reading_bar as bar; bar._SECONDS = 0; from apl_guard.cli import main; main()"
"""The program, to which nothing is too quick for a bar."""


def read_by(what):
    """How many bytes were said to be read."""
    told = []
    before = bytes_read.set(told.append)
    try:
        what()
    finally:
        bytes_read.reset(before)
    return sum(told)


def size(log):
    return sum(path.stat().st_size for path in (log / "segments").iterdir())


def test_every_byte_that_is_read_is_told(copy):
    """Of all segments, by all that read them."""
    log, witness = copy
    with Index(log) as index:
        for what in (lambda: verify_log(log, [witness]), lambda: list(read_log(log)), index.update, index.rebuild):
            assert read_by(what) == size(log)


def test_what_the_index_knows_is_not_read_again(copy):
    """Of each writer its last known record, and what came after it."""
    log, _ = copy
    with Index(log) as index:
        index.update()
        last = {record["writer"]: len(json.dumps(record)) for record in index.newer(index.places() and {}, 10**6)}
        known = size(log)
        assert read_by(index.update) < 2 * sum(last.values())
        with DurableLog(log) as more:
            for number in range(20):
                call(more, 5000 + number)
        new = size(log) - known
        assert new < read_by(index.update) < new + 2 * sum(last.values())


@pytest.mark.parametrize(
    "asked", ["audit verify LOG --witness WITNESS", "policy replay anonymize_faces LOG --since 2100-01-01"]
)
def test_a_terminal_sees_a_bar_and_a_file_does_not(copy, asked):
    """On the error stream, so that answers can be piped."""
    places = dict(zip(("LOG", "WITNESS"), map(str, copy), strict=True))
    command = [sys.executable, "-c", SLOW, *(places.get(word, word) for word in asked.split())]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True)
        os.close(theirs)
        assert b"reading" in terminal.read(1 << 16)
    piped = subprocess.run(command, capture_output=True, check=True)

    assert shown.stdout == piped.stdout
    assert piped.stderr == b""


@pytest.mark.parametrize("cut", [0, 40])
def test_a_segment_that_is_begun_while_the_one_before_is_read_is_no_tampering(copy, cut):
    """Its first record was not there, or half there, when it was looked for; so it is looked for once more."""
    segments = copy[0] / "segments"
    writer, numbers = next(iter(writers_in(segments).items()))
    whole = list(Row(segments, writer, numbers))
    second = segments / segment_name(writer, numbers[1])
    content = second.read_bytes()
    second.write_bytes(content[:cut])

    row = Row(segments, writer, numbers[:2])
    reading = iter(row)
    found = [next(reading)]
    second.write_bytes(content)
    found += reading

    assert (row.problem, row.rest) == (None, [])
    assert found == [line for line in whole if line.segment in numbers[:2]]


def test_checkpoints_of_which_the_last_is_just_being_written_are_no_torn_ones(copy, monkeypatch):
    """It is looked at again; one that a crash cut off stays cut off."""
    log, witness = copy
    file = log / "checkpoints.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    shutil.rmtree(witness)
    witness.mkdir()

    assert verify_log(log, [witness]).torn
    monkeypatch.setattr("apl_guard.audit.verify.sleep", lambda _: file.write_bytes(content))
    assert not verify_log(log, [witness]).torn
