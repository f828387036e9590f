"""Plots as PNG, for documents. In pages, `charts` draws with the colours of the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from apl_guard.errors import ExtraMissing

__all__ = ["colours", "panels", "to_png"]


def panels(count: int, *, size: tuple[float, float], same_y: bool = False) -> tuple[Any, Sequence[Any]]:
    """A figure of matplotlib with panels side by side.

    Args:
        count: How many; at least one is made.
        size: Width and height of each, in inches.
        same_y: Whether they share their y axis.

    Returns:
        The figure, and the axes of each panel.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissing("eval", needs="matplotlib") from error
    # A figure of its own, and not pyplot: no window, no state that others share.
    figure = Figure(figsize=(size[0] * max(1, count), size[1]), layout="constrained")
    return figure, list(figure.subplots(1, max(1, count), squeeze=False, sharey=same_y)[0])


def colours(count: int) -> list[Any]:
    """So many colours, no two alike.

    Raises:
        ExtraMissing: matplotlib is not installed.

    Example:
        >>> len({tuple(colour) for colour in colours(30)})
        30
    """
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise ExtraMissing("eval", needs="matplotlib") from error
    return [colormaps["turbo"](0.05 + 0.9 * k / max(1, count - 1)) for k in range(count)]


def to_png(figure: Any, dpi: int = 130) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()
