"""Finding the prefix for the text encoders that are in a pipe now, on each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.encoder.traits import Tier
from apl_guard.errors import PrefixNotFound, PrefixUntrusted
from apl_guard.policy.acceptance import Acceptance
from apl_guard.prefix import Prefix
from apl_guard.registry.fit import Fit, fit, nothing_for

if TYPE_CHECKING:
    from apl_guard.backend import Backend
    from apl_guard.registry import PrefixRegistry, RegistryEntry

__all__ = ["PrefixFinder"]

_REMEMBERED = 64


class PrefixFinder:
    """Finds the prefix that fits a pipe: the one given, one of a name, or the best of the registry.

    Args:
        backend: The adapter of the pipe.
        registry: Where to look.
        given: The prefix that the platform chose, or None to look in the registry.
    """

    def __init__(self, backend: Backend, registry: PrefixRegistry, given: RegistryEntry | None) -> None:
        self._backend = backend
        self._registry = registry
        self._given = given
        self._checked: set[tuple[str, tuple[tuple[str, Fingerprint], ...] | None]] = set()

    def find(self, name: str | None, acceptance: Acceptance) -> Fit:
        """Find the prefix for the text encoders that are in the pipe now.

        Args:
            name: Name of a registered prefix; None for the one given, or the best.
            acceptance: What the policy accepts.

        Raises:
            PrefixNotFound: None fits.
            PrefixUntrusted: One fits and must not be used: revoked, unsigned, …
            PrefixInvalid: The one that fits is too large for this text encoder.
            PrefixNotApplied: The backend cannot put it in front.
        """
        given = self._chosen(name, acceptance)
        fingerprints = self._backend.fingerprints()
        if fingerprints is None:
            if given is None:
                raise PrefixNotFound(
                    f"the text encoder behind {self._backend.name} cannot be read, so no prefix can be found for it; "
                    "name the one that was trained for it: Guard(pipe, prefix=NAME)",
                    fingerprint=None,
                )
            found = Fit(given, Tier.UNKNOWN, "chosen by the platform; the text encoder cannot be read")
        elif given is not None:
            found = fit(given, fingerprints, self._backend, acceptance)
        else:
            found = self._best(fingerprints, acceptance)
        self._check(found.prefix, fingerprints)
        return found

    def _best(self, fingerprints: Mapping[str, Fingerprint], acceptance: Acceptance) -> Fit:
        """An exact one before a compatible one; of several, the one made last."""
        fits: list[tuple[Fit, RegistryEntry]] = []
        near: PrefixNotFound | None = None
        for entry in self._registry.candidates(acceptance):
            if entry.prefix is None:
                continue
            try:
                fits.append((fit(entry.prefix, fingerprints, self._backend, acceptance), entry))
            except PrefixNotFound as error:
                near = error if error.near else near
        if not fits:
            raise near or nothing_for(fingerprints, self._registry.list(), self._registry)
        fits.sort(key=lambda pair: (pair[0].tier == Tier.EXACT, pair[0].prefix.metadata.created), reverse=True)
        refused: list[PrefixUntrusted] = []
        for found, entry in fits:
            try:
                self._registry.check(entry, acceptance)
            except PrefixUntrusted as error:
                refused.append(error)
            else:
                return found
        raise refused[0]

    def _chosen(self, name: str | None, acceptance: Acceptance) -> Prefix | None:
        """The prefix that the platform or the policy chose, if it may be used."""
        if name is None:
            return None if self._given is None else self._registry.check(self._given, acceptance)
        named = [
            (e.prefix.digest in acceptance.digests, e.version, e)
            for e in self._registry.candidates(acceptance)
            if e.name == name and e.prefix is not None
        ]
        refused: list[PrefixUntrusted] = []
        # Those that the policy names by digest come first, and of several the highest version.
        for _, _, entry in sorted(named, key=lambda each: each[:2], reverse=True):
            try:
                return self._registry.check(entry, acceptance)
            except PrefixUntrusted as error:
                refused.append(error)
        if refused:
            raise refused[0]
        raise PrefixNotFound(
            f"the policy asks for prefix '{name}', and the registry has none of this name that is whole; "
            "see: apl-guard prefix list",
            fingerprint=None,
        )

    def _check(self, prefix: Prefix, fingerprints: Mapping[str, Fingerprint] | None) -> None:
        """Ask the backend about each prefix once for each state of the pipe."""
        key = (prefix.digest, None if fingerprints is None else tuple(fingerprints.items()))
        if key in self._checked:
            return
        self._backend.check_prefix(prefix)
        if len(self._checked) >= _REMEMBERED:
            self._checked.clear()
        self._checked.add(key)
