"""A registry while a service runs on it: changed, cut off, and used by many at once."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from trusted import draw

from apl_guard import Guard, PrefixRegistry, PrefixRevoked, RegistryUnavailable, StorageFailed
from apl_guard.registry import writing
from apl_guard.registry.source import Source
from apl_guard.storage import alone


@pytest.fixture
def there(tmp_path):
    """A folder that stands for a bucket, and its URL."""
    return tmp_path / "bucket", f"file://{tmp_path / 'bucket'}"


class OfAServer(MemoryFileSystem):
    """Has the habits of fsspec's file systems of HTTP and S3 that a registry must know."""

    protocol = "server"
    find = AbstractFileSystem.find  # by `ls`, folder by folder
    busy = ()
    """Ends of paths for which the server has no time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._made_in = os.getpid()

    def ls(self, path, **kwargs):
        if os.getpid() != self._made_in:
            raise RuntimeError("This class is not fork-safe")
        if path.endswith(self.busy):
            raise ConnectionResetError
        return super().ls(path, **kwargs)

    def exists(self, path, **kwargs):
        return not path.endswith(self.busy) and super().exists(path, **kwargs)

    def _open(self, path, *args, **kwargs):
        if path.endswith(self.busy):
            raise FileNotFoundError(path)
        return super()._open(path, *args, **kwargs)


@pytest.fixture
def server(monkeypatch):
    """The URL of a registry on a server, and how to keep it busy."""
    fsspec.register_implementation("server", OfAServer, clobber=True)
    monkeypatch.setattr(OfAServer, "store", {})
    monkeypatch.setattr(OfAServer, "pseudo_dirs", [""])
    return "server://prefixes", lambda *busy: monkeypatch.setattr(OfAServer, "busy", busy)


def at_once(*work):
    """Run each in a thread of its own, all at once; what they raised."""
    start = threading.Barrier(len(work))

    def run(do):
        start.wait()
        do()

    with ThreadPoolExecutor(len(work)) as pool:
        done = [pool.submit(run, do) for do in work]
    return [each.exception() for each in done if each.exception()]


class TestOneThatChanges:
    """What happens behind the URL is noticed, whichever way the prefix was chosen."""

    def test_a_prefix_that_was_named_is_revoked(self, shared_pipe, publish, there, drawn):
        """A service that names its prefix looks at the list of its registry as well."""
        entry = publish(1)
        PrefixRegistry().publish(entry, there[1])
        guard = Guard(shared_pipe, prefix="sd15", registry=PrefixRegistry(there[1], refresh_after=0))
        draw(guard)
        before = len(drawn)

        PrefixRegistry(there[0]).revoke(entry.prefix.digest, "weak")

        with pytest.raises(PrefixRevoked, match="weak"):
            draw(guard)
        assert len(drawn) == before

    def test_a_copy_that_gets_too_old_before_the_next_look(self, shared_pipe, publish, there):
        """That a look was tried a moment ago does not make the copy younger."""
        PrefixRegistry().publish(publish(1), there[1])
        guard = Guard(shared_pipe, registry=PrefixRegistry(there[1], valid_for=3600))
        draw(guard)
        shutil.move(there[0], there[0].with_name("away"))
        draw(guard)

        (marker,) = PrefixRegistry(there[1]).root.parent.glob("copied")
        os.utime(marker, (time.time() - 7200,) * 2)

        with pytest.raises(RegistryUnavailable, match="bucket"):
            draw(guard)

    def test_a_version_that_arrives_in_part(self, shared_pipe, publish, there, monkeypatch):
        """It does not take the place of the one before, which goes on until all of it came."""
        first = publish(1)
        PrefixRegistry().publish(first, there[1])
        guard = Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))
        second = publish(2)
        PrefixRegistry().publish(second, there[1])

        with monkeypatch.context() as cut_off:
            whole = Source.fetch
            cut_off.setattr(Source, "fetch", lambda self, path, limit: whole(self, path, limit)[:100])
            made = guard.generate("a man", num_inference_steps=1)
        assert made.outcome.prefix_digest == first.prefix.digest
        assert guard.generate("a man", num_inference_steps=1).outcome.prefix_digest == second.prefix.digest


class TestAServer:
    """One that answers in part, in ways that file systems hide."""

    def test_a_list_that_cannot_be_read_now_is_not_taken_for_none(self, publish, server, caplog):
        """The copy serves on, and a warning says what that means; with the list comes the revocation."""
        url, keep_busy = server
        entry = publish(1)
        PrefixRegistry().publish(entry, url)
        PrefixRegistry().revoke(entry.prefix.digest, "weak")
        PrefixRegistry().publish_revoked(url)

        keep_busy("revoked.json")
        with pytest.raises(RegistryUnavailable):
            PrefixRegistry(url).refresh()
        keep_busy("none")
        registry = PrefixRegistry(url, refresh_after=0)
        assert entry.prefix.digest in registry.revoked()
        assert not caplog.text
        keep_busy("revoked.json")
        registry.list()
        assert "what was revoked since is not known" in caplog.text

    def test_a_folder_that_cannot_be_listed_now_is_not_taken_for_empty(self, publish, server):
        """Else its versions would be gone, and the one before would count as a step back."""
        url, keep_busy = server
        PrefixRegistry().publish(publish(1), url)
        PrefixRegistry().publish(publish(2), url)
        registry = PrefixRegistry(url, refresh_after=0)
        assert registry.list()[0].version == 2

        keep_busy("sd15/2")
        assert registry.list()[0].version == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_a_worker_that_was_forked_looks_as_well(self, publish, server):
        """As those of `gunicorn --preload` are, whose guard was made before."""
        PrefixRegistry().publish(publish(1), server[0])
        registry = PrefixRegistry(server[0])
        registry.list()

        child = os.fork()
        if child == 0:
            status = 1
            try:
                registry.refresh()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


class TestAFolderThatIsNotThere:
    """A share that is unmounted holds no list, which is not an empty list."""

    @pytest.mark.parametrize("instead", ["nothing", "a mount point"])
    def test_a_named_prefix_is_not_used_without_its_registry(self, shared_pipe, publish, own_registry, instead):
        """Nobody knows whether it was revoked meanwhile. When the folder is back, so is the service."""
        publish(1)
        guard = Guard(shared_pipe, prefix="sd15")
        shutil.move(own_registry, own_registry.with_name("away"))
        if instead == "a mount point":
            own_registry.mkdir()

        with pytest.raises(RegistryUnavailable, match="is the folder mounted"):
            draw(guard)
        shutil.rmtree(own_registry, ignore_errors=True)
        shutil.move(own_registry.with_name("away"), own_registry)
        draw(guard)

    def test_what_was_revoked_while_a_guard_runs_stays_so(self, shared_pipe, publish, own_registry):
        """Though the list is taken away."""
        entry = publish(1)
        guard = Guard(shared_pipe, prefix="sd15")
        PrefixRegistry().revoke(entry.prefix.digest, "weak")
        with pytest.raises(PrefixRevoked):
            draw(guard)
        (own_registry / "revoked.json").unlink()

        with pytest.raises(PrefixRevoked, match="weak"):
            draw(guard)


class TestManyAtOnce:
    """Locks are between open files, so threads stand for processes here."""

    def test_no_revocation_is_lost(self, tmp_path):
        """Four who revoke at once."""

        def revoke(number):
            for turn in range(5):
                PrefixRegistry(tmp_path / "registry").revoke(f"{number}{turn}".ljust(64, "0"), "weak")

        raised = at_once(*(lambda number=number: revoke(number) for number in range(4)))

        assert not raised
        assert len(PrefixRegistry(tmp_path / "registry").revoked()) == 20

    def test_every_version_gets_a_number(self, publish, tmp_path):
        """Four who register other prefixes under one name."""
        folders = [publish(seed, PrefixRegistry(tmp_path / f"of{seed}")).path for seed in range(1, 5)]
        registry = tmp_path / "registry"

        raised = at_once(
            *(lambda f=folder: PrefixRegistry(registry).register(f, "sd15", replace=True) for folder in folders)
        )

        assert not raised
        assert [entry.version for entry in PrefixRegistry(registry).history("sd15")] == [1, 2, 3, 4]

    def test_workers_that_start_together_share_a_copy(self, publish, there):
        """Each finds what the registry has, though all of them copy it to the same place."""
        for seed in range(1, 4):
            PrefixRegistry().publish(publish(seed), there[1])

        raised = at_once(*(PrefixRegistry(there[1]).list for _ in range(4)))

        assert not raised
        assert [entry.version for entry in PrefixRegistry(there[1]).history("sd15")] == [1, 2, 3]

    def test_a_worker_whose_sibling_copies_goes_on(self, shared_pipe, publish, there):
        """With the copy that is there, without waiting."""
        PrefixRegistry().publish(publish(1), there[1])
        guard = Guard(shared_pipe, registry=PrefixRegistry(there[1], refresh_after=0))

        with alone(PrefixRegistry(there[1]).root.parent / "lock", 0) as is_alone:
            assert is_alone
            draw(guard)

    def test_a_writer_that_never_ends(self, tmp_path, monkeypatch):
        """Who has waited for long enough is told so."""
        monkeypatch.setattr(writing, "_PATIENCE_SECONDS", 0.05)
        registry = PrefixRegistry(tmp_path)

        with writing.only_writer(tmp_path), pytest.raises(StorageFailed, match="another process has been writing"):
            registry.revoke("0" * 64, "weak")
