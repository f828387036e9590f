"""Whether a prefix that is there may be used."""

from __future__ import annotations

from collections.abc import Mapping

from apl_guard.errors import PrefixNotPinned, PrefixRevoked, PrefixSignatureInvalid
from apl_guard.policy.acceptance import Acceptance
from apl_guard.prefix import Prefix
from apl_guard.prefix.layout import ENTRY_NAME
from apl_guard.printable import printable
from apl_guard.registry.entry import RegistryEntry
from apl_guard.registry.signing import verify_files

__all__ = ["check_signed", "check_wanted"]


def check_wanted(prefix: Prefix, revoked: Mapping[str, str], acceptance: Acceptance) -> None:
    """Make sure that a prefix is not revoked, and is one of those that the policy names.

    Raises:
        PrefixRevoked: It is revoked.
        PrefixNotPinned: The policy names digests, and this is none of them.
    """
    name, digest = prefix.metadata.name, prefix.digest
    if digest in revoked:
        reason = printable(revoked[digest], None) or "no reason"
        raise PrefixRevoked(f"prefix '{name}' with digest {digest[:12]} is revoked: {reason}")
    if acceptance.digests and digest not in acceptance.digests:
        known = ", ".join(pinned[:12] for pinned in acceptance.digests)
        raise PrefixNotPinned(
            f"prefix '{name}' has digest {digest[:12]}, and the policy accepts {known}; if this one shall be used, "
            f"add {digest} to `spec: {{prefix: {{digests: […]}}}}`"
        )


def check_signed(entry: RegistryEntry, acceptance: Acceptance) -> None:
    """Make sure that one of the accepted signers signed this version of this prefix.

    Raises:
        PrefixUnsigned: There is no signature.
        PrefixSignatureInvalid: It is by somebody else, or over other content.
        ExtraMissing: `apl-guard[signing]` is not installed.
    """
    verify_files(entry.files, entry.signature, acceptance.signers, entry.path)
    # `entry.json` was compared with the place and the content when the folder was read.
    if ENTRY_NAME not in entry.files:
        raise PrefixSignatureInvalid(
            f"{entry.path}: signed without {ENTRY_NAME}, so the signature does not say which version it is of; "
            "register it, then sign it"
        )
