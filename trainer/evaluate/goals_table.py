"""Figures against goals, as a table of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from apl_guard.trainer.evaluate.goals import Row, Verdict
from apl_guard.trainer.evaluate.result import ATTACK, show_figure
from apl_guard.trainer.report.parts import table

__all__ = ["goals_summary", "goals_table"]

_ARMS = ("plain", "neutral", "guarded")
_MARKS: dict[Verdict, str] = {
    "met": "✓ met",
    "likely met": "✓ likely",
    "likely missed": "✗ likely",
    "missed": "✗ missed",
}


def goals_summary(rows: Sequence[Row]) -> str:
    """How many goals are met, in a sentence.

    Example:
        >>> goals_summary([])
        ''
    """
    counts = Counter(row.verdict for row in rows)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _MARKS if counts[verdict])
    return f"Goals: {said}." if said else ""


def goals_table(rows: Sequence[Row]) -> str:
    """Plain, neutral and guarded figures beside what is to be reached, suite after suite, attacks in one group."""
    lines: list[tuple[str, list[str]]] = []
    for group, members in groupby(rows, _group):
        lines.append((group, []))
        for row in members:
            figures = [show_figure(row.figures.get(arm, {}), row.goal.figure) for arm in _ARMS]
            attack = row.goal.suite.removeprefix(ATTACK)
            label = row.goal.label if attack == row.goal.suite else attack
            lines.append((label, [*figures, row.target, _MARKS[row.verdict]]))
    return table([*_ARMS, "goal", "verdict"], lines, corner="figure")


def _group(row: Row) -> str:
    return f"attacks: {row.goal.label}" if row.goal.suite.startswith(ATTACK) else row.goal.suite
