"""What a guard is made with, checked before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apl_guard.detect.output import OutputCheck
from apl_guard.errors import InvalidInput
from apl_guard.prefix import Prefix

__all__ = ["check_given"]


def check_given(prefix: Any, output_check: Any) -> None:
    """Refuse what is no prefix and no output check: it would show in the first call only.

    Raises:
        InvalidInput: One of them is of another type.
    """
    if prefix is not None and not isinstance(prefix, str | Path | Prefix):
        expected = "a prefix, its folder or its name; read one with Prefix.load(FOLDER)"
        raise InvalidInput(f"found {type(prefix).__name__}; expected {expected}", where="prefix")
    if output_check is not None and not isinstance(output_check, OutputCheck):
        expected = "OutputCheck(recogniser, gallery, threshold)"
        raise InvalidInput(f"found {type(output_check).__name__}; expected {expected}", where="output_check")
