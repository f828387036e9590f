"""The curves of the white-box searches, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apl_guard.storage import write_file
from apl_guard.trainer.report.plots import panels, to_png

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
    searches = found["searches"]
    figure, all_axes = panels(len(searches), size=(6.4, 4.4))
    for axes, (kind, sides) in zip(all_axes, searches.items(), strict=True):
        for name, curve in sides.items():
            points = curve["points"]
            steps, leaks = [p["steps"] for p in points], [p["people"] for p in points]
            (line,) = axes.plot(steps, leaks, "--" if curve["is_control"] else "-", marker="o", label=name)
            low, high = zip(*(p["people_ci"] for p in points), strict=True)
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.1)
        axes.axhline(found["settings"]["success"], color="0.6", linewidth=0.8)
        axes.set(title=kind, xlabel="steps of the search", ylabel="people brought back", ylim=(-0.02, 1.02))
        axes.set_xscale("symlog", linthresh=5)
        axes.legend(fontsize="small")
    write_file(path, to_png(figure, dpi=110))
