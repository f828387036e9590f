"""A log with everything in it, and its copies."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that the tests here share

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
