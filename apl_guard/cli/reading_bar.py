"""A bar that shows how much of a log has been read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["reading"]

_SECONDS = 1.0
"""What takes less needs no bar."""


@contextmanager
def reading(log: Path) -> Iterator[None]:
    """Show on a terminal how much of a log has been read.

    Args:
        log: The folder of the log. If it holds none, whoever reads it says so.
    """
    from tqdm import tqdm

    from apl_guard.audit.folder import SEGMENTS
    from apl_guard.audit.row import bytes_read

    total = sum(path.stat().st_size for path in (log / SEGMENTS).glob("*.jsonl"))
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True, delay=_SECONDS, leave=False, disable=None) as bar:
        before = bytes_read.set(bar.update)
        try:
            yield
        finally:
            bytes_read.reset(before)
