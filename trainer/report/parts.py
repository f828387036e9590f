"""The parts of a page: cards, tables, lists. What is handed over is text, and stands in the page as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["card", "facts_list", "table"]


def card(before: str, after: str, label: str) -> str:
    """One figure without and with the guard.

    Example:
        >>> card("90 %", "1 %", "recognised").startswith('<div class="card"><span class="from">90 %</span>')
        True
    """
    return (
        f'<div class="card"><span class="from">{escape(before)}</span><span class="arrow">→</span>'
        f'<span class="to">{escape(after)}</span><p>{escape(label)}</p></div>'
    )


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], corner: str = "") -> str:
    """A table that scrolls where it is too wide.

    Args:
        columns: Their heads.
        rows: The head of each, and its cells: as many as there are columns.
        corner: Above the heads of the rows.

    Example:
        >>> "<tr><th>leak</th><td>&lt; 1 %</td></tr>" in table(["plain"], [("leak", ["< 1 %"])])
        True
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in (corner, *columns))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts_list(facts: Mapping[str, str]) -> str:
    """What was done, label → text.

    Example:
        >>> facts_list({"model": "minifaces"})
        '<dl><dt>model</dt><dd>minifaces</dd></dl>'
    """
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())}</dl>"
