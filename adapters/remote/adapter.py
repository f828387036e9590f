"""What the adapters for services on another machine, and for functions, have in common."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from apl_guard.adapters.remote.http_client import RemoteError
from apl_guard.encoder.traits import Likeness
from apl_guard.errors import InvalidInput, PrefixNotApplied
from apl_guard.prefix import Prefix

__all__ = ["RemoteAdapter", "TextOnlyAdapter", "as_json", "reason"]


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


class TextOnlyAdapter(RemoteAdapter):
    """The backend takes text alone, in front of which no prefix can be put."""

    name: str
    carries_prefix = False

    def check_prefix(self, prefix: Prefix) -> None:
        """No prefix can be put in front.

        Raises:
            PrefixNotApplied: Always.
        """
        raise PrefixNotApplied(f"no prefix can reach {self.name}: it takes text alone")


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the fields as the server gets them, pictures as base64.

    Raises:
        InvalidInput: One cannot be written as JSON.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(fields), default=_picture, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"a field cannot be written as JSON ({type(error).__name__})", where="fields") from error
    return copied


def _picture(value: Any) -> str:
    if not isinstance(value, Image.Image):
        raise TypeError
    content = io.BytesIO()
    value.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def reason(error: Exception) -> str:
    """Why a service does not say what it is asked: what our client says of it. Other messages may quote a prompt."""
    return str(error) if isinstance(error, RemoteError) else type(error).__name__
