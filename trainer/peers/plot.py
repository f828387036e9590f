"""Leak against fidelity, one point a peer."""

from __future__ import annotations

import io

from apl_guard.errors import ExtraMissing
from apl_guard.trainer.peers.bench import BenchResult


def draw_plot(result: BenchResult) -> bytes:
    """Draw the plot as PNG: the better, the further down and to the right.

    Across: what pictures of prompts without names keep. Up: leak of listed people (filled) and of people who are not
    listed (hollow), with intervals, joined by a line for each peer.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissing("eval", needs="matplotlib") from error
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [f"C{k % 10}" for k in range(len(result.rows))]
    for colour, (key, row) in zip(colours, result.rows.items(), strict=True):
        x = 100 * row["generic_fidelity"]
        marker = "s" if row["refused"] > 0.5 else "o"
        axes.plot([x, x], [100 * row["leak_seen"], 100 * row["leak_unseen"]], color=colour, linewidth=0.8, alpha=0.5)
        for figure_name, fill in (("leak_seen", colour), ("leak_unseen", "white")):
            y, (low, high) = 100 * row[figure_name], (100 * bound for bound in row[f"{figure_name}_ci"])
            axes.errorbar(
                x, y, yerr=[[y - low], [high - y]], fmt=marker, color=colour, markerfacecolor=fill, capsize=2,
                linewidth=0.8, label=key if figure_name == "leak_seen" else None,
            )  # fmt: skip
    axes.set_xlabel("kept of what prompts without names ask for, %")
    axes.set_ylabel("leak at FAR 1e-3, %")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.25)
    axes.set_title("filled: listed people   hollow: people not listed   square: no picture", fontsize=9)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
