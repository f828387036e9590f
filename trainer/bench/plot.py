"""Leak against fidelity, one point a peer."""

from __future__ import annotations

import io

from apl_guard.errors import ExtraMissing
from apl_guard.trainer.bench.run import BenchResult

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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissing("eval", needs="matplotlib") from error
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, across, up, label) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        for k, (key, row) in enumerate(result.rows.items()):
            if across not in row:
                continue
            x, y, (low, high) = 100 * row[across], 100 * row[up], (100 * bound for bound in row[f"{up}_ci"])
            axes.errorbar(
                x, y, yerr=[[y - low], [high - y]], fmt=_MARKERS[k % len(_MARKERS)], color=f"C{k % 10}", capsize=2,
                linewidth=0.8, alpha=0.8, label=key,
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("leak at FAR 1e-3, %")
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
