"""A registry on a real server of HTTP, and on one that says nothing."""

import contextlib
import functools
import gzip
import http.server
import io
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from pathlib import Path

import pytest
from trusted import draw

from apl_guard import AplGuardError, Guard, PrefixRegistry, PrefixRevoked, RegistryUnavailable
from apl_guard.registry import source

pytest.importorskip("aiohttp", reason="fsspec speaks HTTP with aiohttp")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder, and the URL under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_prefix_is_taken_from_a_server_and_so_is_its_revocation(served, tmp_path, monkeypatch, shared_pipe, publish):
    """What a plain server of files lists and holds is enough."""
    folder, url = served
    entry = publish(1, PrefixRegistry(folder))
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    guard = Guard(shared_pipe, registry=PrefixRegistry(url, refresh_after=0))
    outcome = guard.generate("a man", num_inference_steps=1).outcome
    assert outcome.prefix_digest == entry.prefix.digest

    PrefixRegistry(folder).revoke(entry.prefix.digest, "it leaks")

    with pytest.raises(PrefixRevoked):
        draw(guard)


class _Linking(_Quiet):
    """Lists a folder with links of another form than the plain names."""

    form = "./{name}"

    def list_directory(self, path):
        names = [file.name + "/" * file.is_dir() for file in Path(path).iterdir()]
        links = [self.form.format(name=name, host=self.headers["Host"], folder=self.path.rstrip("/")) for name in names]
        body = "".join(f'<a href="{link}">x</a>' for link in links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)


@pytest.mark.parametrize("form", ["./{name}", "{folder}/{name}", "http://{host}{folder}/{name}"])
def test_a_revocation_is_found_however_a_server_writes_its_links(tmp_path, monkeypatch, publish, form):
    """Some servers list `./NAME`. What was revoked in a file of its own is as revoked there as elsewhere."""
    folder = tmp_path / "served"
    entry = publish(1, PrefixRegistry(folder))
    PrefixRegistry(tmp_path / "mine").revoke(entry.prefix.digest, "it leaks")
    PrefixRegistry(tmp_path / "mine").publish_revoked(f"file://{folder}")
    (folder / "revoked.json").unlink()
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(type("Handler", (_Linking,), {"form": form}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            registry = PrefixRegistry(f"http://127.0.0.1:{server.server_port}")
            assert registry.revoked() == {entry.prefix.digest: "it leaks"}
        finally:
            server.shutdown()


def test_a_revocation_in_an_archive_is_found(tmp_path, monkeypatch, publish):
    """Its paths begin at its root, without the sign in front that others have there."""
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    PrefixRegistry(tmp_path / "mine").revoke("a" * 64, "it leaks")
    PrefixRegistry().publish(publish(1), f"file://{tmp_path / 'there'}")
    PrefixRegistry(tmp_path / "mine").publish_revoked(f"file://{tmp_path / 'there'}")
    (tmp_path / "there" / "revoked.json").unlink()
    archive = shutil.make_archive(str(tmp_path / "there"), "zip", tmp_path / "there")

    assert PrefixRegistry(f"zip://::{archive}").revoked() == {"a" * 64: "it leaks"}


def test_a_redirect_out_of_https_is_not_followed(served, tmp_path, publish, certificate):
    """Where a proxy writes redirects as if there were no TLS, anybody on the way could hold a revocation back."""
    folder, url = served
    publish(1, PrefixRegistry(folder))

    class Redirecting(_Quiet):
        def do_GET(self):
            self.send_response(301)
            self.send_header("Location", f"{url}{self.path}/")
            self.send_header("Content-Length", "0")
            self.end_headers()

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = f"https://127.0.0.1:{server.server_port}"
        # Which authorities are trusted is read when aiohttp is imported.
        run = subprocess.run(
            [sys.executable, "-c", f"from apl_guard import PrefixRegistry; PrefixRegistry({asked!r}).list()"],
            env=os.environ | {"SSL_CERT_FILE": str(certificate), "APL_GUARD_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert "redirects from https to http" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("is_compressed", [True, False])
def test_an_answer_beyond_all_bounds_is_not_held_in_memory(tmp_path, monkeypatch, is_compressed):
    """A list of what is in the folder that goes on and on, or would if it were unpacked: the service lives on."""
    size = 128 << 20
    packed = gzip.compress(bytes(size))

    class Endless(_Quiet):
        def do_GET(self):
            self.send_response(200)
            if is_compressed:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody listens any more
                for part in [packed] if is_compressed else [bytes(1 << 20)] * (size >> 20):
                    self.wfile.write(part)

    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracemalloc.start()
        try:
            with pytest.raises(RegistryUnavailable, match="holds no prefix" if is_compressed else "answer is larger"):
                PrefixRegistry(f"http://127.0.0.1:{server.server_port}").list()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            server.shutdown()
    assert most < size // 2


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    """The connection is taken and no answer comes: an error that says so, and not a call that waits for minutes."""
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "_SILENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="cannot be copied"):
            PrefixRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}").list()
    assert time.monotonic() - began < 30


def test_no_error_log_or_file_tells_the_password_of_a_url(served, tmp_path, monkeypatch, publish, caplog):
    """A registry may be reached with user and password; errors are shown to others, and others may read the cache."""
    folder, url = served
    secret = "S3cret@x"  # nobody has to escape the second at sign
    guarded = url.replace("://", f"://reader:{secret}@")
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))
    registry = PrefixRegistry(guarded, refresh_after=0)
    told = [repr(registry)]

    def tell(ask, *arguments):
        with pytest.raises(AplGuardError) as caught:
            ask(*arguments)
        told.extend(traceback.format_exception(caught.value))

    tell(registry.list)  # there is nothing yet
    entry = publish(1, PrefixRegistry(folder))
    tell(registry.open, "another")
    tell(registry.register, entry.path)
    tell(PrefixRegistry(folder).publish, entry, guarded)
    (folder / "revoked.json").write_bytes(b"damaged")
    registry.list()  # the copy serves on
    tell(registry.refresh)
    for scheme in ("ftp", "nothing"):
        tell(lambda scheme: PrefixRegistry(f"{scheme}://reader:{secret}@127.0.0.1:1").list(), scheme)

    kept = [path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert "the copy serves on" in caplog.text
    assert url in told[0]
    assert "S3cret" not in "".join([*told, *kept, caplog.text])
