"""Leak against fidelity, one point a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apl_guard.trainer.bench.run import BenchResult
from apl_guard.trainer.report.plots import colours, panels, to_png

_MARKERS = "osD^vP*X<>hp"
_PANELS = (
    ("people on the list", "scene_fidelity", "leak_seen", "kept of what these prompts ask for besides the person, %"),
    ("people not on the list", "generic_fidelity", "leak_unseen", "kept of what prompts without names ask for, %"),
)


def draw_plot(result: BenchResult) -> bytes:
    """Draw the plot as PNG: leak, with intervals, against what is kept; the better, the further down and to the right.

    On the left people on the list, whose blocked prompts keep nothing; on the right people who are not on it, against
    what other prompts keep. Methods that act on listed names alone stand at one place there, that of the plain model.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    figure, all_axes = panels(len(_PANELS), size=(6, 5), same_y=True)
    colour = colours_of(list(result.rows))
    for axes, (title, across, up, label) in zip(all_axes, _PANELS, strict=True):
        for k, (key, row) in enumerate(result.rows.items()):
            if across not in row:
                continue
            x, y, (low, high) = 100 * row[across], 100 * row[up], (100 * bound for bound in row[f"{up}_ci"])
            axes.errorbar(
                x, y, yerr=[[y - low], [high - y]], fmt=_MARKERS[k % len(_MARKERS)], color=colour[key], capsize=2,
                linewidth=0.8, alpha=0.8, label=key,
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
    all_axes[0].set_ylabel("leak at FAR 1e-3, %")
    figure.legend(*all_axes[1].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    return to_png(figure)


def colours_of(peers: Sequence[str]) -> dict[str, Any]:
    """Black for the first, the plain model, and for every other peer a colour of its own.

    Raises:
        ExtraMissing: matplotlib is not installed.

    Example:
        >>> found = colours_of(["plain", *(f"peer {k}" for k in range(11))])
        >>> found["plain"], len(set(found.values()))
        ('black', 12)
    """
    plain, *others = peers
    return {plain: "black", **dict(zip(others, colours(len(others)), strict=True))}
