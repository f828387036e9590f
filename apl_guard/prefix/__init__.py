"""A prefix: the learned vectors, what is known about them, and the folder they are kept in."""

from apl_guard.prefix.metadata import PrefixMetadata
from apl_guard.prefix.prefix import Prefix

__all__ = ["Prefix", "PrefixMetadata"]
