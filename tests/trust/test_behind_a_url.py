"""A registry behind a URL: copied, remembered, and believed only as far as one in a folder."""

import os
import shutil
import socket
import threading
import types

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from trusted import draw

from apl_guard import Guard, InvalidInput, PrefixRegistry, PrefixRevoked, PrefixRolledBack, RegistryUnavailable
from apl_guard.policy.acceptance import Acceptance
from apl_guard.registry import source


class Connecting(MemoryFileSystem):
    """Connects when it is made, as those of FTP and SFTP do."""

    protocol = "connecting"
    cachable = False
    is_down = False

    def __init__(self, *args, **kwargs):
        if self.is_down:
            raise ConnectionRefusedError
        super().__init__(*args, **kwargs)


class OverSsh(MemoryFileSystem):
    """Has one connection for all of its life, whose client waits without a limit unless told, as that of SFTP."""

    protocol = "overssh"
    servers = ()
    """The one that is up now."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        (self.server,) = self.servers
        self.connection, self.far_end = socket.socketpair()
        self.server.connections.append(self.connection)
        transport = types.SimpleNamespace(close=self.connection.close)
        channel = types.SimpleNamespace(settimeout=self.connection.settimeout, get_transport=lambda: transport)
        self.ftp = types.SimpleNamespace(get_channel=lambda: channel)

    def ls(self, path, detail=True, **kwargs):
        if self.server not in self.servers:
            raise OSError("Socket is closed")
        if self.server.hangs:
            self.connection.recv(1)
        return super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def over_ssh(monkeypatch, publish):
    """A registry in which version 1 is, and what starts its server anew."""
    fsspec.register_implementation("overssh", OverSsh, clobber=True)
    monkeypatch.setattr(OverSsh, "store", {})

    def start():
        server = types.SimpleNamespace(connections=[], hangs=False)
        monkeypatch.setattr(OverSsh, "servers", (server,))
        return server

    start()
    PrefixRegistry().publish(publish(1), "overssh://prefixes")
    return PrefixRegistry("overssh://prefixes"), start


class TestBehindAUrl:
    """A registry that fsspec reaches is copied, and the copy is read as any other registry."""

    @pytest.fixture
    def there(self, tmp_path):
        """A folder that stands for a bucket, and its URL."""
        return tmp_path / "bucket", f"file://{tmp_path / 'bucket'}"

    def test_push_and_find(self, shared_pipe, publish, there):
        """The prefix that was pushed makes the image."""
        entry = publish(1)
        PrefixRegistry().publish(entry, there[1])

        made = Guard(shared_pipe, registry=there[1]).generate("a man", num_inference_steps=1)

        assert made.outcome.prefix_digest == entry.prefix.digest

    def test_in_memory_as_in_a_bucket(self, shared_pipe, publish):
        """Another file system of fsspec, which has no folders of its own."""
        entry = publish(1)
        PrefixRegistry().publish(entry, "memory://bucket/prefixes")

        found = PrefixRegistry("memory://bucket/prefixes")

        assert found.get("sd15").digest == entry.prefix.digest
        with pytest.raises(InvalidInput, match="behind a URL"):
            found.register(entry.path)

    def test_revoked_where_it_lies(self, publish, there):
        """In one step, without a registry of one's own, and for all who copy from there."""
        entry = publish(1)
        PrefixRegistry().publish(entry, there[1])
        PrefixRegistry(there[1]).revoke(entry.prefix.digest, "weak")

        assert PrefixRegistry(there[0]).revoked() == {entry.prefix.digest: "weak"}
        with pytest.raises(PrefixRevoked, match="weak"):
            PrefixRegistry(there[1]).check(entry, Acceptance())

    def test_the_next_version_comes_with_a_look(self, publish, there):
        """Not before it is due."""
        PrefixRegistry().publish(publish(1), there[1])
        lazy, eager = PrefixRegistry(there[1]), PrefixRegistry(there[1], refresh_after=0)
        assert lazy.list()[0].version == 1
        PrefixRegistry().publish(publish(2), there[1])

        assert lazy.list()[0].version == 1
        assert eager.list()[0].version == 2
        lazy.refresh()
        assert [entry.version for entry in lazy.history("sd15")] == [1, 2]

    def test_versions_only_grow(self, publish, there):
        """Pushing what is there already, or something older."""
        first = publish(1)
        PrefixRegistry().publish(first, there[1])

        with pytest.raises(InvalidInput, match="only grow"):
            PrefixRegistry().publish(first, there[1])
        PrefixRegistry().publish(publish(2), there[1])
        with pytest.raises(InvalidInput, match="version 2"):
            PrefixRegistry().publish(first, there[1])

    def test_rolled_back_without_any_signature(self, shared_pipe, publish, there, drawn):
        """Whoever holds the bucket goes back to version 1."""
        PrefixRegistry().publish(publish(1), there[1])
        PrefixRegistry().publish(publish(2), there[1])
        Guard(shared_pipe, registry=there[1])
        shutil.rmtree(there[0] / "sd15" / "2")

        with pytest.raises(PrefixRolledBack):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))
        assert drawn == []

    def test_a_revocation_is_remembered_when_the_list_vanishes(self, shared_pipe, publish, there):
        """Whoever holds the bucket cannot take it back."""
        entry = publish(1)
        PrefixRegistry().revoke(entry.prefix.digest, "weak")
        PrefixRegistry().publish(entry, there[1])
        with pytest.raises(PrefixRevoked, match="weak"):
            Guard(shared_pipe, registry=there[1])
        (there[0] / "revoked.json").write_text('{"format": "apl-guard-revoked/1", "revoked": []}')

        with pytest.raises(PrefixRevoked, match="weak"):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))

    def test_the_copy_serves_while_the_registry_is_away(self, shared_pipe, publish, there):
        """For as long as it is valid, and not longer."""
        PrefixRegistry().publish(publish(1), there[1])
        PrefixRegistry(there[1]).refresh()
        shutil.move(there[0], there[0].with_name("away"))

        draw(Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0)))
        with pytest.raises(RegistryUnavailable, match="bucket"):
            Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0, valid_for=0))
        with pytest.raises(RegistryUnavailable):
            PrefixRegistry(there[1]).refresh()

    def test_a_registry_that_was_never_there(self, shared_pipe, there):
        """No copy, no image."""
        with pytest.raises(RegistryUnavailable, match="holds no prefix"):
            Guard(shared_pipe, registry=there[1])

    def test_only_what_a_registry_has_is_copied(self, publish, there, tmp_path):
        """Other names, other files, files too large, ways out: none of it comes along."""
        PrefixRegistry().publish(publish(1), there[1])
        bucket = there[0]
        for place in ("sd15/1/evil.py", "sd15/x/prefix.safetensors", ".ssh/1/prefix.safetensors", "README.md"):
            (bucket / place).parent.mkdir(parents=True, exist_ok=True)
            (bucket / place).write_bytes(b"evil")

        PrefixRegistry(there[1]).refresh()
        copied = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
        assert copied == {"prefix.safetensors", "entry.json", "card.md", "copied", "lock"}

        (bucket / "sd15" / "2").mkdir()
        with (bucket / "sd15" / "2" / "prefix.safetensors").open("wb") as stream:
            stream.truncate(1 << 33)
        with pytest.raises(RegistryUnavailable, match="larger than"):
            PrefixRegistry(there[1]).refresh()

    def test_the_root_of_a_file_system(self, publish, tmp_path, monkeypatch):
        """Is not taken for a folder of this machine that is called `memory:`."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(MemoryFileSystem, "store", {})
        entry = publish(1)
        PrefixRegistry().publish(entry, "memory://")

        assert PrefixRegistry("memory://").get("sd15").digest == entry.prefix.digest
        assert "/sd15/1/prefix.safetensors" in MemoryFileSystem.store
        assert not (tmp_path / "memory:").exists()

    def test_a_server_that_is_down_while_the_service_starts(self, shared_pipe, publish, monkeypatch):
        """Some file systems connect as soon as they are made; the copy serves on."""
        fsspec.register_implementation("connecting", Connecting, clobber=True)
        monkeypatch.setattr(Connecting, "store", {})
        PrefixRegistry().publish(publish(1), "connecting://prefixes")
        PrefixRegistry("connecting://prefixes").refresh()
        monkeypatch.setattr(Connecting, "is_down", True)

        assert draw(Guard(shared_pipe, registry=PrefixRegistry("connecting://prefixes", refresh_after=0))).images
        with pytest.raises(RegistryUnavailable, match="cannot be opened"):
            PrefixRegistry().publish(publish(2), "connecting://prefixes")
        with pytest.raises(RegistryUnavailable):
            PrefixRegistry("connecting://prefixes").refresh()

    def test_a_server_that_is_started_anew(self, publish, over_ssh):
        """The next look connects again, and none leaves its connection open."""
        registry, start = over_ssh
        registry.refresh()
        server = start()
        second = publish(2)
        PrefixRegistry().publish(second, "overssh://prefixes")

        registry.refresh()

        assert registry.get("sd15").digest == second.prefix.digest
        assert [connection.fileno() for connection in server.connections] == [-1, -1]

    def test_a_connection_that_died_in_silence(self, over_ssh, monkeypatch):
        """A look gives up; the next one is not behind it."""
        monkeypatch.setattr(source, "_SILENCE_SECONDS", 0.05)
        registry, start = over_ssh
        server = start()
        server.hangs, raised = True, []

        def look():
            try:
                registry.refresh()
            except RegistryUnavailable as error:
                raised.append(error)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(60)
        assert raised
        server.hangs = False
        registry.refresh()

    def test_a_pipe_in_place_of_the_list(self, publish, there):
        """It is refused, not waited for."""
        PrefixRegistry().publish(publish(1), there[1])
        os.mkfifo(there[0] / "revoked.json")
        raised = []

        def look():
            try:
                PrefixRegistry(there[1]).refresh()
            except RegistryUnavailable as error:
                raised.append(str(error))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert "not a regular file" in raised[0]

    def test_a_cache_that_cannot_be_written(self, publish, there, tmp_path, monkeypatch):
        """The message is about that, and not about the registry."""
        PrefixRegistry().publish(publish(1), there[1])
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "file"))

        with pytest.raises(RegistryUnavailable, match="APL_GUARD_CACHE"):
            PrefixRegistry(there[1]).list()

    @pytest.mark.parametrize("url", ["nothing://bucket", "s3://bucket/prefixes"])
    def test_file_systems_that_are_not_there(self, url):
        """The message says what to install."""
        if url.startswith("s3"):
            pytest.importorskip("fsspec")
            try:
                import s3fs  # noqa: F401
            except ImportError:
                pass
            else:
                pytest.skip("s3fs is installed")
        with pytest.raises(InvalidInput, match=r"s3fs|[Pp]rotocol"):
            PrefixRegistry(url)
