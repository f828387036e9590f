"""A server that speaks ComfyUI's API, with the prefix in its folder, and a guard in front of it."""

import pytest
from comfyui_server import ComfyUIServer
from workflows import MODEL

from apl_guard import ComfyUI, Guard


@pytest.fixture
def server(prefix):
    server = ComfyUIServer({prefix.embedding_name: (prefix.n, None), "mara": (4, None)})
    yield server
    server.close()


@pytest.fixture
def guard(server, prefix, tmp_path):
    return Guard(ComfyUI(server.url, models=[MODEL]), prefix=prefix, audit=tmp_path / "audit")
