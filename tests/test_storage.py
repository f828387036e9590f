"""Reading what somebody names leaves nothing open."""

import contextlib
import os

import pytest

from apl_guard import Policy, PolicyInvalid, PrefixInvalid
from apl_guard.errors import StorageFailed
from apl_guard.policy import Names
from apl_guard.policy.document import named_files
from apl_guard.policy.names_file import read_names
from apl_guard.prefix.tensorfile import read_file
from apl_guard.storage import read_regular, write_file, write_folder


def next_handle():
    """The number that the next file gets, which grows with each that stays open."""
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    return handle


@pytest.mark.parametrize(("umask", "modes"), [(0o022, (0o644, 0o755)), (0o077, (0o600, 0o700))])
def test_files_are_readable_for_whom_the_user_wants(umask, modes, tmp_path):
    """As everything that the account writes; what is private stays so."""
    before = os.umask(umask)
    try:
        written = [write_file(tmp_path / "file", b""), write_folder(tmp_path / "folder", {"file": b""})]
        private = write_file(tmp_path / "private", b"", private=True)
    finally:
        os.umask(before)

    assert tuple(path.stat().st_mode & 0o777 for path in written) == modes
    assert (written[1] / "file").stat().st_mode & 0o777 == modes[0]
    assert private.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "private"}


def test_a_missing_folder_is_not_taken_for_a_full_disk(tmp_path):
    """The error says to make it, not to free space."""
    with pytest.raises(StorageFailed, match=r"No such file.*; make its folder or choose another place"):
        write_file(tmp_path / "missing" / "file", b"content")


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: read_regular(folder, 9),
        read_file,
        Policy.load,
        named_files,
        lambda folder: read_names(Names(id="stars", file=folder.name), folder.parent),
    ],
)
def test_a_folder_in_the_place_of_a_file_costs_no_handle(read, tmp_path):
    """A service looks at its files again and again; it would run out of handles."""
    (tmp_path / "folder").mkdir()
    before = next_handle()
    for _ in range(3):
        with contextlib.suppress(OSError, PolicyInvalid, PrefixInvalid):
            read(tmp_path / "folder")

    assert next_handle() == before
