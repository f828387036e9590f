"""Curves: figures of several prefixes against what they differ by, as a file that a report reads.

{"curves": [{"title": …, "x": …, "points": [{"x": 5, "label": "N = 5", "leak, seen": 0.01, "leak, seen_ci": […], …}]}],
 "settings": how all of them were made}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.storage import read_regular, write_file
from apl_guard.trainer.report.plots import draw_lines, panels, to_png
from apl_guard.trainer.train.checkpoint import differences

_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Curve:
    """Figures against one setting."""

    title: str
    x: str
    """What the setting is."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Each has `x`, `label`, and shares with their intervals under `NAME_ci`."""

    @property
    def series(self) -> dict[str, list[tuple[float, float]]]:
        """Figure → points (x, y), in the order of x.

        Example:
            >>> Curve("t", "N", [{"x": 5, "label": "", "leak": 0.1}, {"x": 1, "label": "", "leak": 0.5}]).series
            {'leak': [(1.0, 0.5), (5.0, 0.1)]}
        """
        names = dict.fromkeys(
            name for point in self.points for name in point if name not in ("x", "label") and not name.endswith("_ci")
        )
        ordered = sorted(self.points, key=lambda point: float(point["x"]))
        return {name: [(float(p["x"]), float(p[name])) for p in ordered if p.get(name) is not None] for name in names}

    @property
    def reach(self) -> dict[str, list[tuple[float, float, float]]]:
        """Figure → (x, low, high) of each interval that is known.

        Example:
            >>> Curve("t", "N", [{"x": 5, "label": "", "leak": 0.1, "leak_ci": [0.0, 0.2]}]).reach
            {'leak': [(5.0, 0.0, 0.2)]}
        """
        return {
            name: [(float(p["x"]), *p[f"{name}_ci"]) for p in self.points if p.get(f"{name}_ci") is not None]
            for name in self.series
        }


def write_curves(path: Path, curves: Sequence[Curve], settings: Mapping[str, Any] | None = None) -> Path:
    """Write curves as JSON.

    Args:
        path: The file.
        curves: What to write.
        settings: How they were made, where more may be added later; see `curves_so_far`.

    Raises:
        StorageFailed: The file cannot be written.
    """
    content = {"curves": [asdict(curve) for curve in curves], "settings": dict(settings or {})}
    return write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def curves_so_far(path: Path, settings: Mapping[str, Any]) -> list[Curve]:
    """The curves of earlier runs, to which others that are made in the same way can be added.

    Raises:
        InvalidInput: The file cannot be read, or its curves were made in another way.
    """
    if not path.exists():
        return []
    curves, found = _read(path)
    if found != (wanted := json.loads(json.dumps(settings))):
        names = ", ".join(sorted(differences(found, wanted)))
        msg = f"holds curves that were made otherwise, by {names}; choose another folder, or move this file away"
        raise InvalidInput(msg, where=path)
    return curves


def merge(known: Sequence[Curve], curves: Sequence[Curve]) -> list[Curve]:
    """Earlier curves with newer ones: a point that is in both is the newer one, and none is lost.

    Example:
        >>> old = Curve("t", "N", [{"x": 1, "label": "old"}, {"x": 2, "label": "old"}])
        >>> (both,) = merge([old], [Curve("t", "N", [{"x": 2, "label": "new"}, {"x": 3, "label": "new"}])])
        >>> [(point["x"], point["label"]) for point in both.points]
        [(1, 'old'), (2, 'new'), (3, 'new')]
    """
    merged = {curve.title: curve for curve in known}
    for curve in curves:
        before = merged[curve.title].points if curve.title in merged else []
        points = {float(point["x"]): point for point in (*before, *curve.points)}
        merged[curve.title] = replace(curve, points=list(points.values()))
    return list(merged.values())


def read_curves(path: Path) -> list[Curve]:
    """Read curves.

    Raises:
        InvalidInput: The file cannot be read or holds no curves.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Curve], dict[str, Any]]:
    """The curves of a file, and how they were made."""
    try:
        content = json.loads(read_regular(path, _MAX_BYTES))
        curves = [Curve(one["title"], one["x"], list(one["points"])) for one in content["curves"]]
        for curve in curves:
            curve.series  # noqa: B018 - raises where a point is none
            for point in curve.points:
                point["label"]
    except OSError as error:
        raise InvalidInput(f"the curves cannot be read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        msg = "no curves in it; expected what `apl-guard minifaces scale` or `minifaces tradeoff` wrote"
        raise InvalidInput(msg, where=path) from error
    return curves, content.get("settings") or {}


def draw_curves(curves: Sequence[Curve]) -> bytes:
    """All curves side by side as one PNG, each figure with its interval.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    figure, all_axes = panels(len(curves), size=(4.6, 3.8))
    lines = []
    for axes, curve in zip(all_axes, curves, strict=False):  # without a curve there is an empty panel
        by_x = {float(point["x"]): point for point in curve.points}
        lines.append(
            {
                name: ([x for x, _ in line], [y for _, y in line], [by_x[x].get(f"{name}_ci") for x, _ in line])
                for name, line in curve.series.items()
            }
        )
        axes.set(title=curve.title, xlabel=curve.x, ylabel="%")
    draw_lines(figure, all_axes, lines)
    for axes in all_axes:
        axes.set_ylim(bottom=-2)
    return to_png(figure)
