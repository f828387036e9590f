"""The keys of a log where they are missing, wrong, from another log, or put back from a copy."""

import os

import instant
import pytest

from apl_guard import AuditUnavailable, Guard
from apl_guard.audit import AuditLog


class TestKeys:
    """Missing, wrong, from another log, put back from a copy."""

    @pytest.fixture
    def log(self, folders, prefix):
        log, witness = folders
        guard = Guard(instant.Pipe(), prefix=prefix, audit=log, audit_witness=witness)
        guard("a cat")
        guard.close()
        return log

    def reopen(self, log):
        AuditLog(log, witness=log.parent / "witness").close()

    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_missing(self, log, name):
        """The message says what to do; no new key takes its place."""
        (log / "keys" / name).unlink()

        with pytest.raises(AuditUnavailable, match="backup"):
            self.reopen(log)

    @pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"\xff" * 9000])
    @pytest.mark.parametrize("name", ["digest.key", "seal.key"])
    def test_damaged(self, log, name, content):
        """As missing."""
        (log / "keys" / name).write_bytes(content)

        with pytest.raises(AuditUnavailable, match="key"):
            self.reopen(log)

    def test_of_another_log(self, log, tmp_path):
        """What it would sign could never be verified."""
        AuditLog(tmp_path / "other").close()
        (log / "keys" / "seal.key").write_bytes((tmp_path / "other" / "keys" / "seal.key").read_bytes())

        with pytest.raises(AuditUnavailable, match="another log"):
            self.reopen(log)

    def test_read_only_folder(self, log):
        """Refused at the start."""
        if os.geteuid() == 0:
            (log / ".lock").unlink()
            (log / ".lock").mkdir()  # root may write anywhere, but not into a folder as if it were a file
        else:
            log.chmod(0o500)

        with pytest.raises(AuditUnavailable, match="cannot be used"):
            self.reopen(log)
        log.chmod(0o700)
