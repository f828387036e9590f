"""Revocations that reach a registry without locks, such as a bucket, from several at once."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from apl_guard import PrefixRegistry, StorageFailed

URL = "crowded://prefixes"


class Crowded(MemoryFileSystem):
    """Two who want to write the list have both read it before either of them writes it."""

    protocol = "crowded"
    meeting = None

    def pipe_file(self, path, value, **kwargs):
        if self.meeting is not None and path.endswith("revoked.json"):
            self.meeting.wait(20)
        super().pipe_file(path, value, **kwargs)


@pytest.fixture
def crowded(monkeypatch):
    """The file system of the bucket, which is empty."""
    fsspec.register_implementation("crowded", Crowded, clobber=True)
    monkeypatch.setattr(Crowded, "store", {})
    monkeypatch.setattr(Crowded, "pseudo_dirs", [""])
    return Crowded


def listed(bucket):
    """What the list alone says, without the files beside it."""
    (content,) = [file.getvalue() for path, file in bucket.store.items() if path.endswith("/revoked.json")]
    return json.loads(content)["revoked"]


def test_of_two_who_push_at_the_same_moment_neither_is_lost(publish, crowded, tmp_path, monkeypatch):
    """Whoever writes the list last, each revocation has a file of its own."""
    PrefixRegistry().publish(publish(1), URL)
    registries = [PrefixRegistry(tmp_path / name) for name in ("mara", "voss")]
    for registry, digest in zip(registries, "ab", strict=True):
        registry.revoke(digest * 64, f"reason {digest}")
    monkeypatch.setattr(crowded, "meeting", threading.Barrier(2))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda registry: registry.publish_revoked(URL), registries))
    monkeypatch.setattr(crowded, "meeting", None)

    assert len(listed(crowded)) == 1  # the list alone has lost one
    assert PrefixRegistry(URL).revoked() == {"a" * 64: "reason a", "b" * 64: "reason b"}
    registries[0].publish_revoked(URL)
    registries[1].publish_revoked(URL)
    assert len(listed(crowded)) == 2  # for those who read nothing but the list


def test_a_folder_to_which_others_push_by_url_is_read_as_well(publish, tmp_path):
    """What lies beside the list counts there, too, and damage of it costs no more than the reason."""
    folder = tmp_path / "shared"
    mine, there = PrefixRegistry(tmp_path / "mine"), PrefixRegistry(folder)
    mine.revoke("a" * 64, "weak")
    mine.publish_revoked(f"file://{folder}")
    (folder / "revoked.json").unlink()
    (folder / "revoked" / f"{'b' * 64}.json").write_bytes(b"")
    (folder / "revoked" / f"{'c' * 64}.json").write_bytes((folder / "revoked" / f"{'a' * 64}.json").read_bytes())
    (folder / "revoked" / "notes.txt").write_text("")

    assert there.revoked() == {"a" * 64: "weak", "b" * 64: "", "c" * 64: ""}
    there.revoke("d" * 64, "weaker")
    assert len(there.revoked()) == 4


def test_what_was_revoked_in_a_registry_from_before_stays_so(publish, crowded):
    """One that has the list alone, to which one more is pushed."""
    entry = publish(1)
    PrefixRegistry().publish(entry, URL)
    PrefixRegistry().revoke("e" * 64, "new")
    old = {"digest": "f" * 64, "reason": "old", "when": "2026-01-01T00:00:00Z"}
    content = json.dumps({"format": "apl-guard-revoked/1", "revoked": [old]}).encode()
    fsspec.open(f"{URL}/revoked.json").fs.pipe_file(f"{URL}/revoked.json", content)

    PrefixRegistry().publish_revoked(URL)
    registry = PrefixRegistry(URL)
    assert registry.revoked() == {"f" * 64: "old", "e" * 64: "new"}

    for path in [path for path in crowded.store if "revoked" in path]:  # whoever holds the bucket takes all of it away
        del crowded.store[path]
    registry.refresh()
    assert registry.revoked() == {"f" * 64: "old", "e" * 64: "new"}


def test_a_list_that_would_be_too_long_is_not_pushed_in_part(publish, crowded):
    """It would switch off every guard that uses the registry."""
    PrefixRegistry().publish(publish(1), URL)
    many = [{"digest": f"{n:064x}", "reason": "x" * 500, "when": "2026-01-01T00:00:00Z"} for n in range(1640)]
    here = PrefixRegistry()
    (here.root / "revoked.json").write_text(json.dumps({"format": "apl-guard-revoked/1", "revoked": many}))

    with pytest.raises(StorageFailed, match="at most 1048576"):
        here.publish_revoked(URL)
    assert not [path for path in crowded.store if "revoked" in path]
