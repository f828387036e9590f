"""Every error that apl-guard raises on purpose.

    AplGuardError
    ├── PolicyBlocked         the policy decided against the request; not a fault
    │   └── OutputWithheld    an image shows somebody of the gallery
    ├── GuardUnavailable      the guard could not do its work, so there is no image
    │   ├── PrefixNotFound    no prefix fits the text encoder of this pipe
    │   ├── SelfTestFailed    the last self-test with canary prompts failed
    │   ├── PrefixNotApplied  the text encoder did not receive the prefix
    │   ├── DetectorFailed    a detector that a rule asks about texts failed
    │   ├── OutputCheckFailed the finished images could not be checked
    │   ├── PrefixUntrusted   a prefix exists, but must not be used
    │   │   ├── PrefixUnsigned          it has no signature, and the policy asks for one
    │   │   ├── PrefixSignatureInvalid  none of the accepted signers signed this content
    │   │   ├── PrefixRolledBack        an older version, or another one under a number that was seen before
    │   │   ├── PrefixRevoked           it was revoked
    │   │   └── PrefixNotPinned         the policy names other digests
    │   ├── RegistryUnavailable  a registry behind a URL cannot be reached
    │   └── AuditUnavailable  a record could not be written
    ├── InvalidInput          something the user handed over is wrong
    │   ├── RequestTooLarge   more text than any request may hold
    │   ├── PrefixInvalid     a prefix folder or file
    │   ├── PolicyInvalid     a policy file
    │   ├── ModelInvalid      a model folder or hub id
    │   ├── IdentitiesInvalid an identities file
    │   └── ConfigInvalid     a training configuration
    ├── TrainingFailed        training cannot go on, such as when the loss is not a number
    ├── StorageFailed         a file could not be written, such as on a full disk
    ├── MetricsUnavailable    metrics cannot be counted or served, such as where the port is taken
    └── ExtraMissing          an optional dependency is not installed (also an ImportError)

Errors of the backend are none of these: they pass through the guard unchanged.
Messages say what was found, what was expected and what to do. They never hold text of a prompt.
"""

# ruff: noqa: N818 - the names say what happened, as in `except PolicyBlocked`.

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apl_guard.decision import Decision
    from apl_guard.detect.output import Sighting
    from apl_guard.encoder.fingerprint import Fingerprint

__all__ = [
    "AplGuardError",
    "AuditUnavailable",
    "ConfigInvalid",
    "DetectorFailed",
    "ExtraMissing",
    "GuardUnavailable",
    "IdentitiesInvalid",
    "InvalidInput",
    "MetricsUnavailable",
    "ModelInvalid",
    "OutputCheckFailed",
    "OutputWithheld",
    "PolicyBlocked",
    "PolicyInvalid",
    "PrefixInvalid",
    "PrefixNotApplied",
    "PrefixNotFound",
    "PrefixNotPinned",
    "PrefixRevoked",
    "PrefixRolledBack",
    "PrefixSignatureInvalid",
    "PrefixUnsigned",
    "PrefixUntrusted",
    "RegistryUnavailable",
    "RequestTooLarge",
    "SelfTestFailed",
    "StorageFailed",
    "TrainingFailed",
]


class Portable(Exception):
    """An error that a process can hand to another, whatever it is made of.

    Python makes a pickled error again from its message alone. One that needs more cannot be made, and a pool of
    processes breaks at the first that a call in it raises.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[Portable], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Portable:
    """Past the `__init__` of its own class, which has done its work."""
    error = kind.__new__(kind, *arguments)
    super(Portable, error).__init__(*arguments)
    error.__dict__.update(attributes)
    return error


class AplGuardError(Portable):
    """The root of every error of apl-guard."""


class PolicyBlocked(AplGuardError):
    """The policy decided against this request. Asking again gives the same answer."""

    def __init__(self, message: str, *, decision: Decision) -> None:
        super().__init__(message)
        self.decision = decision


class OutputWithheld(PolicyBlocked):
    """An image shows somebody of the gallery, so the call gives none. Another seed may give another image."""

    def __init__(self, message: str, *, decision: Decision, sightings: tuple[Sighting, ...]) -> None:
        super().__init__(message, decision=decision)
        self.sightings = sightings
        """Who was seen, by the entries of the gallery: for the platform, not for its users."""


class GuardUnavailable(AplGuardError):
    """The guard could not do its work; no image is released."""


class SelfTestFailed(GuardUnavailable):
    """The last self-test failed, so there is no image until one passes."""


class PrefixNotFound(GuardUnavailable):
    """No prefix fits the text encoder of this pipe: train or register one."""

    def __init__(self, message: str, *, fingerprint: Fingerprint | None, near: bool = False) -> None:
        super().__init__(message)
        self.fingerprint = fingerprint
        self.near = near
        """Whether one would fit if the policy accepted it."""


class PrefixNotApplied(GuardUnavailable):
    """The text encoder did not receive the prefix that it should have received."""


class DetectorFailed(GuardUnavailable):
    """A detector that a rule asks about texts failed: in a call, where the policy says `on_error: block`, or in a test
    of the policy."""


class OutputCheckFailed(GuardUnavailable):
    """The finished images could not be checked, so they are not released."""


class PrefixUntrusted(GuardUnavailable):
    """A prefix exists, but must not be used."""


class PrefixUnsigned(PrefixUntrusted):
    """The prefix has no signature, and the policy asks for one."""


class PrefixSignatureInvalid(PrefixUntrusted):
    """None of the accepted signers signed the content of this prefix."""


class PrefixRolledBack(PrefixUntrusted):
    """A registry offers an older version than before, or another one under a number that was seen before."""


class PrefixRevoked(PrefixUntrusted):
    """The prefix was revoked in its registry."""


class PrefixNotPinned(PrefixUntrusted):
    """The policy names the digests that it accepts, and not this one."""


class RegistryUnavailable(GuardUnavailable):
    """A registry cannot be reached, or its list of revoked prefixes cannot be read."""


class AuditUnavailable(GuardUnavailable):
    """A record could not be written durably."""


class InvalidInput(AplGuardError):
    """A file, field or argument from the user is wrong.

    Example:
        >>> str(InvalidInput("expected text, found int", where="prompt"))
        'prompt: expected text, found int'
    """

    def __init__(self, message: str, *, where: str | Path | None = None) -> None:
        super().__init__(message if where is None else f"{where}: {message}")
        self.where = None if where is None else str(where)


class RequestTooLarge(InvalidInput):
    """More text than any request may hold, whatever the policy says."""


class PrefixInvalid(InvalidInput):
    """A prefix folder or file is missing, damaged or not a prefix."""


class PolicyInvalid(InvalidInput):
    """A policy file is missing, damaged or says something impossible."""


class ModelInvalid(InvalidInput):
    """A model folder is missing or half-written, or a hub id cannot be fetched."""


class IdentitiesInvalid(InvalidInput):
    """An identities file has unknown keys, duplicate names or no people."""


class ConfigInvalid(InvalidInput):
    """A training configuration has an unknown option, or a value that is out of range."""


class TrainingFailed(AplGuardError):
    """Training cannot go on."""


class StorageFailed(AplGuardError):
    """A file could not be written. Nothing half-written takes its place."""

    def __init__(self, message: str, *, path: str | Path) -> None:
        super().__init__(f"{path}: {message}")
        self.path = Path(path)


class MetricsUnavailable(AplGuardError):
    """Metrics cannot be counted or served. Raised when a service starts, not during a call."""


class ExtraMissing(AplGuardError, ImportError):
    """An optional dependency is not installed.

    Example:
        >>> str(ExtraMissing("eval", needs="matplotlib"))
        "matplotlib is not installed; install it with: pip install 'apl-guard[eval]'"
    """

    def __init__(self, extra: str, *, needs: str) -> None:
        super().__init__(f"{needs} is not installed; install it with: pip install 'apl-guard[{extra}]'")
        self.extra = extra

    @classmethod
    def check(cls, extra: str, *packages: str) -> None:
        """Say before long work, and not at its end, that what it ends with is not installed.

        Args:
            extra: The extra that brings the packages.
            packages: Packages that are imported by their own names.

        Raises:
            ExtraMissing: One is not installed.

        Example:
            >>> ExtraMissing.check("eval", "json", "no_such_package")
            Traceback (most recent call last):
            apl_guard.errors.ExtraMissing: no_such_package is not installed; install it with: ...
        """
        for package in packages:
            if find_spec(package) is None:
                raise cls(extra, needs=package)
