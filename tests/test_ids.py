"""Ids of calls: never twice, whichever threads and processes make them."""

import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from apl_guard.request import ids


def test_ids_are_uuids_of_their_moment():
    """Version 7 of RFC 9562, for whoever reads them as such; a later one sorts behind an earlier one."""
    before = time.time_ns() // 1_000_000
    made = [ids.new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    read = [uuid.UUID(one) for one in made]

    assert {(one.version, one.variant) for one in read} == {(7, uuid.RFC_4122)}
    assert all(before <= one.int >> 80 <= after for one in read)
    assert all(one == id.hex for one, id in zip(made, read, strict=True))
    assert [one[:12] for one in made] == sorted(one[:12] for one in made)


def test_the_other_bits_are_random():
    """Each of the 74 is set in about half of 4,000 ids: 1,775 to 2,225 leaves out one in 10¹² at either end."""
    made = [int(ids.new_id(), 16) for _ in range(4000)]
    often = [sum(one >> bit & 1 for one in made) for bit in (*range(62), *range(64, 76))]

    assert all(1775 < count < 2225 for count in often)


def test_threads_never_get_the_same():
    """Eight at once, through many refills."""
    begin = threading.Barrier(8)

    def make(_):
        begin.wait()
        return [ids.new_id() for _ in range(5000)]

    with ThreadPoolExecutor(8) as pool:
        made = [one for part in pool.map(make, range(8)) for one in part]
    assert len(set(made)) == len(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_processes_never_get_the_same():
    """A child of a fork does not go on with the random bits of its parent."""
    ids.new_id()
    reading, writing = os.pipe()
    for _ in range(3):
        if os.fork() == 0:
            os.write(writing, "".join(ids.new_id() + "\n" for _ in range(50)).encode())
            os._exit(0)
    for _ in range(3):
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    os.close(writing)
    with os.fdopen(reading) as stream:
        made = [*stream.read().split(), *(ids.new_id() for _ in range(50))]
    assert len({one[12:] for one in made}) == len(made) == 200
