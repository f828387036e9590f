"""Figures against goals, as a table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apl_guard.trainer.evaluate.goals import Row
from apl_guard.trainer.evaluate.result import show_figure

_ARMS = ("plain", "neutral", "guarded")
_MARKS = {"met": "✓ met", "likely met": "✓ likely", "likely missed": "✗ likely", "missed": "✗ missed"}


def goals_table(rows: Sequence[Row]) -> str:
    """Plain, neutral and guarded figures beside what is to be reached, suite after suite."""
    lines: list[str] = []
    suite = ""
    for row in rows:
        if row.goal.suite != suite:
            suite = row.goal.suite
            lines.append(f'<tr class="suite"><th colspan="6">{escape(suite)}</th></tr>')
        cells = [show_figure(row.figures[arm], row.goal.figure) if arm in row.figures else "–" for arm in _ARMS]
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(
            f"<tr><th>{escape(row.goal.label)}</th>{shown}<td>{row.target}</td>"
            f'<td class="{row.verdict.split()[-1]}">{_MARKS[row.verdict]}</td></tr>'
        )
    heads = "".join(f"<th>{text}</th>" for text in ("", *_ARMS, "goal", ""))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
