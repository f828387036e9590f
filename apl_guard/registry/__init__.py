"""The registered prefixes, in which the guard finds the one that fits a text encoder.

A registry is a folder, here or behind a URL:

    REGISTRY/
      revoked.json               digests that must not be used any more
      revoked/DIGEST.json        the same, one by one, where nobody can lock the list
      NAME/
        1/  prefix.safetensors   version 1, never changed again
            card.md
            entry.json           name, version and digest
            model.sig            signature over the files above
        2/  …                    the highest version is the one in use

Other processes may add to it at any time.
"""

from apl_guard.registry.entry import RegistryEntry
from apl_guard.registry.registry import PrefixRegistry

__all__ = ["PrefixRegistry", "RegistryEntry"]
