"""The curves of the white-box searches, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apl_guard.storage import write_file
from apl_guard.trainer.report.plots import draw_lines, panels, to_png

__all__ = ["draw_curves", "to_table"]


def to_table(found: Mapping[str, Any]) -> str:
    """A table for people: for each side how many were brought back after some steps, and the steps needed.

    Example:
        >>> points = [{"steps": 0, "people": 0.25, "people_checked": 0.0}]
        >>> curve = {"points": points, "needed": None, "needed_checked": None}
        >>> print(to_table({"searches": {"tokens": {"mine": curve}}}))
        tokens                               0   needed
          mine                            25 %    never
            behind the output check        0 %    never
    """
    lines: list[str] = []
    for kind, sides in found["searches"].items():
        steps = [point["steps"] for point in next(iter(sides.values()))["points"]]
        lines.append(f"{kind:29}" + "".join(f"{step:>9}" for step in steps) + "   needed")
        for name, curve in sides.items():
            for behind, label in (("", name), ("_checked", "  behind the output check")):
                cells = "".join(f"{100 * point[f'people{behind}']:7.0f} %" for point in curve["points"])
                needed = "never" if curve[f"needed{behind}"] is None else str(curve[f"needed{behind}"])
                times = curve.get(f"times{behind}")
                more = (
                    "" if times is None else f"  {'≥ ' if curve[f'times{behind}_is_lower_bound'] else ''}{times:.1f} ×"
                )
                lines.append(f"  {label:27}{cells}{needed:>9}{more}")
        lines.append("")
    return "\n".join(lines).rstrip()


def draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """Draw who is back against steps, one panel for each search, controls dashed.

    Raises:
        ExtraMissing: matplotlib is not installed.
        StorageFailed: The picture cannot be written.
    """
    searches, success = found["searches"], 100 * found["settings"]["success"]
    figure, all_axes = panels(len(searches), size=(6.4, 4.8), same_y=True)
    lines = [
        {
            name: (_each(curve, "steps"), _each(curve, "people"), _each(curve, "people_ci"))
            for name, curve in sides.items()
        }
        for sides in searches.values()
    ]
    for axes, kind in zip(all_axes, searches, strict=True):
        axes.axhline(success, color="0.4", linewidth=0.8)
        axes.annotate(" success", (0, success), xycoords=("axes fraction", "data"), va="bottom")
        axes.set(title=kind, xlabel="steps of the search", ylim=(-2, 102))
        axes.set_xscale("symlog", linthresh=5)
    all_axes[0].set_ylabel("people brought back, %")
    dashed = [name for sides in searches.values() for name, curve in sides.items() if curve["is_control"]]
    draw_lines(figure, all_axes, lines, dashed)
    write_file(path, to_png(figure, dpi=110))


def _each(curve: Mapping[str, Any], figure: str) -> list[Any]:
    return [point[figure] for point in curve["points"]]
