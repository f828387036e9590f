"""What a disk holds behind a power cut: what was synced, and of everything else any part."""

import contextlib
import os
import stat
import threading

from apl_guard.audit import disk


class Disk:
    """Follows what is synced below a folder. The folder itself is on the disk from the start.

    Of a file, that is its content when it was synced last; of a folder, the names in it. Each is held open, so that no
    other takes its inode.
    """

    def __init__(self, root):
        self._held = {}
        self._contents = {}
        self._names = {}
        self._lock = threading.RLock()
        self._root = self._hold(root)

    @contextlib.contextmanager
    def watch(self, monkeypatch, before_sync):
        """Follow the syncs of this process, and call something before each."""

        def through(sync):
            def synced(handle):
                with self._lock:
                    before_sync()
                    sync(handle)
                    self._note(handle)

            return synced

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", through(os.fsync))
            patch.setattr(disk, "sync", through(disk.sync))
            yield

    def cut(self, place, chance=None):
        """Write down what is on the disk if the power fails now.

        Args:
            place: A new folder.
            chance: Decides what of the rest has come there too. None stands for nothing of it.
        """
        with self._lock:
            self._write(self._root, place, chance)

    def _hold(self, path):
        there = os.stat(path)
        if there.st_ino not in self._held:
            self._held[there.st_ino] = os.open(path, os.O_RDONLY)
        return there.st_ino

    def _note(self, handle):
        path = f"/proc/self/fd/{handle}"
        inode = self._hold(path)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            self._names[inode] = self._names_in(inode)
        else:
            self._contents[inode] = self._content_of(inode)

    def _names_in(self, inode):
        path = f"/proc/self/fd/{self._held[inode]}"
        return {name: self._hold(f"{path}/{name}") for name in os.listdir(path)}

    def _content_of(self, inode):
        return os.pread(self._held[inode], os.fstat(self._held[inode]).st_size, 0)

    def _write(self, inode, place, chance):
        mode = os.fstat(self._held[inode]).st_mode
        if not stat.S_ISDIR(mode):
            place.write_bytes(_either(self._contents.get(inode, b""), self._content_of(inode), chance))
            place.chmod(stat.S_IMODE(mode))
            return
        place.mkdir()
        before, now = self._names.get(inode, {}), self._names_in(inode)
        for name in sorted(before | now):
            found = before.get(name) if chance is None else chance.choice([before.get(name), now.get(name)])
            if found is not None:
                self._write(found, place / name, chance)

    def close(self):
        """Let go of the files."""
        for handle in self._held.values():
            os.close(handle)


def _either(before, now, chance):
    """The content of a file from before a write, from behind it, or from in between."""
    if chance is None:
        return before
    at = chance.randrange(max(len(before), len(now)) + 1)
    zeros = bytes(max(0, len(now) - at))  # a disk may have made room for what it has not written
    return chance.choice([before, now, now[:at] + before[at:], now[:at] + before[at:] + zeros[len(before[at:]) :]])
