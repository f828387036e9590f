"""A server that speaks AUTOMATIC1111's API, with the prefix loaded, and a guard in front of it."""

import pytest
from a1111_server import A1111Server

from apl_guard import A1111, Guard


@pytest.fixture
def server(prefix):
    server = A1111Server({prefix.embedding_name: (prefix.n, 32), "mara-voss": (4, 32), "king's": (4, 32)})
    yield server
    server.close()


@pytest.fixture
def guard(server, prefix, tmp_path):
    return Guard(A1111(server.url), prefix=prefix, audit=tmp_path / "audit")


@pytest.fixture(scope="module")
def shared_server(prefix):
    server = A1111Server({prefix.embedding_name: (prefix.n, 32), "mara-voss": (4, 32), "king's": (4, 32)})
    yield server
    server.close()
