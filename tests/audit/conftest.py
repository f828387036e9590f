"""A log with everything in it, its copies, and the program that is asked about it."""

import contextlib
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from apl_guard import Guard, InvalidInput, PolicyBlocked, backend
from apl_guard.audit import AuditLog

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that the tests here share

import instant
from logs import make_log


@pytest.fixture
def folders(tmp_path):
    """Where a log and its witness go."""
    return tmp_path / "log", tmp_path / "witness"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A whole log and its witness, to be copied."""
    root = tmp_path_factory.mktemp("whole")
    make_log(root / "log", root / "witness")
    return root


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the whole log that a test may change: the log and its witness."""
    shutil.copytree(whole / "log", tmp_path / "log")
    shutil.copytree(whole / "witness", tmp_path / "witness")
    return tmp_path / "log", tmp_path / "witness"


@pytest.fixture(autouse=True)
def adapter(monkeypatch):
    """The guard finds the adapter of the instant backend as it finds a built-in one."""
    monkeypatch.setitem(backend._BUILT_IN, "instant", "instant:Adapter")


@pytest.fixture
def run(run):
    """Run `apl-guard audit` in this process; its exit code, output and errors."""
    return partial(run, "audit")


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
