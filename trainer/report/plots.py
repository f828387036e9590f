"""Plots as PNG, for documents. In pages, `charts` draws with the colours of the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from apl_guard.errors import ExtraMissing

__all__ = ["colours", "draw_lines", "panels", "to_png"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of Okabe and Ito, who chose them so that people who do not see all colours can tell them apart."""
_MARKERS = "osD^vP*X"


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


def draw_lines(
    figure: Any,
    all_axes: Sequence[Any],
    lines: Sequence[Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[Any]]]],
    dashed: Sequence[str] = (),
) -> None:
    """Draw lines of shares in per cent with their intervals, of one name alike in each panel, and one legend below.

    Args:
        figure: What `panels` made.
        all_axes: Its panels.
        lines: For each panel, name → x, shares, and their intervals (None where there is none).
        dashed: Names of lines to be dashed.
    """
    names = list(dict.fromkeys(name for panel in lines for name in panel))
    handles: dict[str, Any] = {}
    for axes, panel in zip(all_axes, lines, strict=False):  # without a line there is an empty panel
        for name, (x, shares, intervals) in panel.items():
            k = names.index(name)
            reach = [interval or (y, y) for y, interval in zip(shares, intervals, strict=True)]
            below = [max(0.0, 100 * (y - low)) for y, (low, _) in zip(shares, reach, strict=True)]
            above = [max(0.0, 100 * (high - y)) for y, (_, high) in zip(shares, reach, strict=True)]
            # Later ones are smaller, so that those below them show.
            handles[name] = axes.errorbar(
                x, [100 * y for y in shares], yerr=(below, above), capsize=3, elinewidth=0.9,
                color=_COLOURS[k % len(_COLOURS)], marker=_MARKERS[k % len(_MARKERS)],
                markersize=max(4, 9 - 2 * k), linestyle="--" if name in dashed else "-",
            )  # fmt: skip
        axes.grid(alpha=0.3)
        if ticks := sorted({at for x, _, _ in panel.values() for at in x}):
            axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
            axes.minorticks_off()
    for columns in (4, 3, 2, 1) if handles else ():
        # A legend that is wider than the figure would be cut off on both sides.
        legend = figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()


def to_png(figure: Any, dpi: int = 130) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()
