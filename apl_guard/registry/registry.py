"""Finding, adding and trusting registered prefixes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.errors import InvalidInput, RegistryUnavailable
from apl_guard.policy.acceptance import Acceptance
from apl_guard.prefix import Prefix
from apl_guard.prefix.layout import ENTRY_NAME, is_name
from apl_guard.prefix.places import SHIPPED_NAME, find_path, registry_root, shipped_path
from apl_guard.prefix.tensorfile import read_file
from apl_guard.printable import printable
from apl_guard.registry.adding import adopt, register
from apl_guard.registry.entry import RegistryEntry, read_entry
from apl_guard.registry.fit import nothing_for
from apl_guard.registry.memory import Memory
from apl_guard.registry.mirror import Mirror
from apl_guard.registry.publishing import publish, publish_revoked
from apl_guard.registry.revoked import RevokedFile, read_revoked, revocation, revoke
from apl_guard.registry.shelf import Shelf
from apl_guard.registry.signing import sign_folder
from apl_guard.registry.source import as_url
from apl_guard.registry.trust import check_signed, check_wanted

__all__ = ["PrefixRegistry"]


class PrefixRegistry:
    """Where a guard finds prefixes: registered, versioned, and checked before use. docs/registry.md describes it.

    Args:
        location: A folder; a URL that fsspec can open, such as `s3://bucket/prefixes`; or `owner/name` of a
            repository on the Hugging Face hub. None stands for `APL_GUARD_REGISTRY`, or a folder among the
            user's data. What is behind a URL is copied to the user's cache folder.
        refresh_after: Seconds within which a change of a registry behind a URL is noticed; a thread looks for it.
        valid_for: Seconds for which its copy serves while it cannot be reached.

    Raises:
        InvalidInput: The URL is of a kind that is not supported here, or a file has the name of the folder.

    Example:
        >>> import tempfile
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = random_prefix(tiny_pipe(), n=4).save(folder + "/made")
        ...     registry = PrefixRegistry(folder + "/registry")
        ...     registry.register(made, "sd15").version, registry.get("sd15").n
        (1, 4)
    """

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        refresh_after: float = 300.0,
        valid_for: float = 86_400.0,
    ) -> None:
        if location is None:
            location = os.environ.get("APL_GUARD_REGISTRY") or registry_root()
        url = as_url(location)
        if url is None and os.path.exists(location) and not os.path.isdir(location):
            raise InvalidInput("not a folder; expected the folder of a registry", where=printable(str(location)))
        self._memory = Memory(url or os.path.abspath(location))
        self._mirror = None if url is None else Mirror(url, self._memory.folder / "copy", refresh_after, valid_for)
        self._shelf = Shelf(Path(location) if self._mirror is None else self._mirror.folder)
        shipped = shipped_path()
        self._shipped = None if shipped is None else Shelf(shipped)
        self._trusted: dict[Path, tuple[object, tuple[str, ...]]] = {}
        self._revoked: dict[str, str] = {}
        """Digest → reason of all that was revoked while this process ran. Nothing takes a revocation back."""

    def __repr__(self) -> str:
        return f"PrefixRegistry({self._memory.location!r})"

    @property
    def root(self) -> Path:
        """The folder; of a registry behind a URL, that of its copy."""
        return self._shelf.root

    def refresh(self) -> None:
        """Look at a registry behind a URL now. A folder needs no such step.

        Raises:
            RegistryUnavailable: It cannot be reached.
        """
        if self._mirror is not None:
            self._mirror.refresh()

    def register(self, folder: str | Path, name: str | None = None, *, replace: bool = False) -> RegistryEntry:
        """Check a prefix and copy it into the registry, as the next version of its name.

        Args:
            folder: The prefix folder that training wrote.
            name: What to call it; its own name unless given.
            replace: Whether it may be the next version of another prefix of this name.

        Returns:
            The new version, or the one in use if it is the same prefix.

        Raises:
            PrefixInvalid: The prefix is missing or damaged.
            InvalidInput: The name is taken by another prefix, reserved or malformed.
            StorageFailed: The registry could not be written.
        """
        self._must_be_a_folder()
        return register(self._shelf, folder, name, replace=replace)

    def adopt(self, entry: RegistryEntry) -> RegistryEntry:
        """Copy a version of another registry into this one, under its own number and with its signature.

        Args:
            entry: What was read of it there.

        Returns:
            The new version, or the one that is here already if it is the same prefix. That gets the signature of
            the other, if it has one.

        Raises:
            PrefixInvalid: It is damaged.
            InvalidInput: It has no number, or this registry has that version, or a later one, of another prefix.
            StorageFailed: The registry could not be written.
        """
        self._must_be_a_folder()
        return adopt(self._shelf, entry)

    def publish(self, entry: RegistryEntry, target: str | Path) -> None:
        """Copy a version, and the revocations known here, to another registry.

        If the version is there already, it gets the signature that it has here.

        Args:
            entry: A version of this registry.
            target: A folder, a URL, or `owner/name` on the hub.

        Raises:
            InvalidInput: It has no number, or the other registry has that version or a later one.
            RegistryUnavailable: The other registry cannot be reached or written.
            StorageFailed: The other registry could not be written.
        """
        publish(entry, read_revoked(self.root), target)

    def publish_revoked(self, target: str | Path) -> None:
        """Copy the revocations known here to another registry.

        Args:
            target: A folder, a URL, or `owner/name` on the hub.

        Raises:
            RegistryUnavailable: The other registry cannot be reached or written.
            StorageFailed: The other registry could not be written.
        """
        publish_revoked(read_revoked(self.root), target)

    def list(self) -> tuple[RegistryEntry, ...]:
        """The version in use of each prefix by name, damaged ones with their problem; the shipped one last.

        Raises:
            RegistryUnavailable: A registry behind a URL cannot be reached, and its copy is too old.
        """
        self._look()
        entries = [*self._shelf.current()]
        if self._shipped is not None:
            entries.append(self._shipped.entry(self._shipped.root, 0, SHIPPED_NAME))
        return tuple(entries)

    def history(self, name: str) -> tuple[RegistryEntry, ...]:
        """All versions of one name, the first one first.

        Raises:
            RegistryUnavailable: A registry behind a URL cannot be reached, and its copy is too old.
        """
        self._look()
        return self._shelf.history(name)

    def candidates(self, acceptance: Acceptance) -> tuple[RegistryEntry, ...]:
        """The versions in use, and any older one that the policy names by its digest.

        Raises:
            RegistryUnavailable: A registry behind a URL cannot be reached, and its copy is too old.
        """
        entries = self.list()
        if not acceptance.digests:
            return entries
        older = [old for entry in entries for old in self.history(entry.name)[:-1]]
        return (*entries, *(old for old in older if old.prefix and old.prefix.digest in acceptance.digests))

    def check(self, entry: RegistryEntry, acceptance: Acceptance) -> Prefix:
        """Make sure that a prefix may be used.

        Args:
            entry: From this registry, or from `open`.
            acceptance: What the policy accepts.

        Raises:
            PrefixInvalid: It is damaged.
            PrefixRevoked: It is revoked.
            PrefixNotPinned: The policy names digests, and this is none of them.
            PrefixUnsigned: The policy names signers, and it has no signature.
            PrefixSignatureInvalid: It is signed by somebody else, or was changed since.
            PrefixRolledBack: A later version was here before.
            RegistryUnavailable: The list of revoked prefixes, or what was seen before, cannot be read; or the registry
                is behind a URL, cannot be reached, and its copy is too old.
        """
        self._look()  # a prefix that was chosen beforehand may have been revoked since
        prefix = entry.whole
        careful = self._mirror is not None or bool(acceptance.signers)
        revoked = self._still_revoked(entry)
        check_wanted(prefix, self._memory.revoked(revoked) if careful else revoked, acceptance)
        if acceptance.signers:
            key = (entry.state, acceptance.signers)
            if entry.state is None or self._trusted.get(entry.path) != key:
                check_signed(entry, acceptance)
                self._trusted[entry.path] = key
        if careful and self._shelf.is_current(entry):
            self._memory.check(entry.name, entry.version, prefix.digest)
        return prefix

    def _still_revoked(self, entry: RegistryEntry) -> dict[str, str]:
        """Digest → reason of what is revoked now, or was while this process ran.

        Raises:
            RegistryUnavailable: The list cannot be read, or the folder that the prefix came from is not there now.
        """
        revoked = read_revoked(self.root).reasons
        came_from_here = self._mirror is None and self.root in entry.path.parents
        if not revoked and came_from_here and not os.path.lexists(self.root / entry.name):
            raise RegistryUnavailable(
                f"{self.root}: prefix '{entry.name}' came from there and is not there any more, so nobody knows "
                "whether it was revoked; is the folder mounted?"
            )
        self._revoked.update(revoked)
        return self._revoked

    def find(self, fingerprints: Fingerprint | Mapping[str, Fingerprint]) -> Prefix:
        """Find the prefix for a pipe's text encoders. Of several, the one made last.

        Args:
            fingerprints: Slot → fingerprint of the text encoder in it; one alone stands for `text_encoder`.

        Raises:
            PrefixNotFound: There is none. The message holds the fingerprint and the command that makes one.
            PrefixRevoked: It is revoked.
        """
        if isinstance(fingerprints, Fingerprint):
            fingerprints = {"text_encoder": fingerprints}
        entries = self.list()
        fitting = [e for e in entries if e.prefix and e.prefix.metadata.fingerprints == fingerprints]
        if not fitting:
            raise nothing_for(fingerprints, entries, self)
        best = max(fitting, key=lambda entry: entry.whole.metadata.created)
        return self.check(best, Acceptance())

    def open(self, path_or_name: str | Path) -> RegistryEntry:
        """Read a prefix by its folder, its file, or its name in this registry.

        Raises:
            PrefixInvalid: There is none, or it is damaged.
        """
        if not os.path.exists(path_or_name) and is_name(str(path_or_name)) and str(path_or_name) != SHIPPED_NAME:
            return self.verify(str(path_or_name))
        path = find_path(path_or_name)
        if path.is_dir():
            return read_entry(path, None, 0)
        content = read_file(path)
        prefix = Prefix.parse(content, where=path)
        return RegistryEntry(prefix.metadata.name, path, prefix, files={path.name: content})

    def get(self, name: str) -> Prefix:
        """Read the version in use of a prefix by its name.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
        """
        return self.verify(name).whole

    def verify(self, name: str) -> RegistryEntry:
        """Read the version in use of a prefix again from disk and check all of it but the signature.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
        """
        if name == SHIPPED_NAME:
            return read_entry(find_path(name), name, 0)
        self._look()
        return self._shelf.read(name, self._memory.location)

    def sign(self, name: str, key: str | Path, password: str | None = None) -> RegistryEntry:
        """Sign the version in use of a prefix.

        Args:
            name: Its name.
            key: A private key on an elliptic curve, in PEM.
            password: Of the key, if it has one.

        Raises:
            PrefixInvalid: There is none of this name, or it is damaged.
            InvalidInput: The key cannot be used, or the prefix has no version.
            ExtraMissing: `apl-guard[signing]` is not installed.
            StorageFailed: The signature could not be written.
        """
        self._must_be_a_folder()
        entry = self.verify(name)
        if ENTRY_NAME not in entry.files:
            raise InvalidInput("has no version yet; register it again under another name, then sign that", where=name)
        sign_folder(entry.path, entry.files, Path(key), password)
        return self.verify(name)

    def revoke(self, digest: str, reason: str) -> RevokedFile:
        """Put a prefix on the list of those that must not be used any more. There is no way back.

        Args:
            digest: Of the prefix, 64 hexadecimal digits.
            reason: For those who will ask.

        Raises:
            InvalidInput: The digest is none, or the reason is too long.
            RegistryUnavailable: The list is damaged, or what is behind the URL cannot be reached or written.
            StorageFailed: The list could not be written.
        """
        if self._mirror is None:
            return revoke(self.root, digest, reason)
        publish_revoked(RevokedFile(revoked=(revocation(digest, reason),)), self._mirror.url)
        self._mirror.refresh()
        return read_revoked(self.root)

    def revoked(self) -> Mapping[str, str]:
        """Digest → reason of each prefix on the list.

        Raises:
            RegistryUnavailable: The list is damaged.
        """
        self._look()
        return read_revoked(self.root).reasons

    def _look(self) -> None:
        if self._mirror is not None:
            self._mirror.keep_fresh()

    def _must_be_a_folder(self) -> None:
        if self._mirror is not None:
            raise InvalidInput(
                "is behind a URL; change a registry in a folder, then use: apl-guard prefix push NAME URL",
                where=self._memory.location,
            )
