"""What the adapters for services on another machine, and for functions, have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apl_guard.prefix import Prefix
from apl_guard.traits import Likeness

__all__ = ["RemoteAdapter"]


class RemoteAdapter:
    """The text encoder is out of reach, and the guard gives no access to the client that it wraps."""

    def fingerprints(self) -> None:
        """None: the weights cannot be read."""

    def likeness(self, prefix: Prefix) -> Mapping[str, Likeness]:
        """Never asked, since there are no fingerprints."""
        return {}

    def get_setting(self, name: str) -> Any:
        """There are none.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"'{name}' is not reachable through the guard", name=name)

    def set_setting(self, name: str, value: Any) -> None:
        """There are none.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(f"'{name}' cannot be set through the guard", name=name)
