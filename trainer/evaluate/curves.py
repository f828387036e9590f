"""Curves: figures of several prefixes against what they differ by, as a file that a report reads.

{"curves": [{"title": …, "x": …, "points": [{"x": 5, "label": "N = 5", "leak, seen": 0.01, "leak, seen_ci": […], …}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.storage import write_file


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


def write_curves(path: Path, curves: Sequence[Curve]) -> Path:
    """Write curves as JSON.

    Raises:
        StorageFailed: The file cannot be written.
    """
    return write_file(path, (json.dumps({"curves": [asdict(curve) for curve in curves]}, indent=2) + "\n").encode())


def read_curves(path: Path) -> list[Curve]:
    """Read curves; also the points of leak against attributes kept that `apl-guard minifaces tradeoff` writes.

    Raises:
        InvalidInput: The file cannot be read or holds no curves.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "points" in content:
            points = [
                {"x": p["attributes_kept"], "label": p["setting"], "leak at FAR 1e-3": p["leak"]}
                for p in content["points"]
            ]
            return [Curve("Leak against attributes kept", "attributes kept", points)]
        curves = [Curve(one["title"], one["x"], list(one["points"])) for one in content["curves"]]
        for curve in curves:
            curve.series  # noqa: B018 - raises where a point is none
    except OSError as error:
        raise InvalidInput(f"the curves cannot be read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = "no curves in it; expected what `apl-guard minifaces scale` or `minifaces tradeoff` wrote"
        raise InvalidInput(msg, where=path) from error
    return curves
