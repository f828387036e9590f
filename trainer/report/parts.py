"""The parts of a page: cards, tables, images, lists. What is handed over is text, and stands in the page as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["card", "facts_list", "gallery", "side_by_side", "table"]

_MARKS = {"✓": ' class="met"', "✗": ' class="missed"'}
"""What a cell begins with that is coloured."""
_FEW = 3
"""Columns of figures that have room for their intervals beside them, on a desk."""


def card(before: str, after: str, label: str) -> str:
    """One figure without and with the guard, each with its interval where there is one.

    Example:
        >>> card("90 %", "1 % [0, 3]", "recognised")
        '<div class="card"><span class="from">90 % →</span> <span class="to">1 %</span> <small>[0, 3]</small>\
<p>recognised</p></div>'
    """
    value, interval = _parted(after)
    return (
        f'<div class="card"><span class="from">{_parted(before)[0]} →</span> <span class="to">{value}</span>'
        f" <small>{interval}</small><p>{escape(label)}</p></div>"
    )


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], corner: str = "") -> str:
    """A table that scrolls where it is too wide.

    Figures stand below each other, and so do their intervals: beside them, or under them where columns are many.

    Args:
        columns: Their heads.
        rows: The head of each, and its cells: as many as there are columns, or none above a group of rows.
        corner: Above the heads of the rows.

    Example:
        >>> '<tr><th scope="row">leak</th><td>&lt; 1 %</td></tr>' in table(["plain"], [("leak", ["< 1 %"])])
        True
    """
    lines = [(escape(name), [_parted(cell) for cell in cells]) for name, cells in rows]
    with_intervals = [any(cells and cells[k][1] for _, cells in lines) for k in range(len(columns))]
    room = [" <small></small>" if wide else "" for wide in (False, *with_intervals)]
    head = (
        f'<th scope="col">{escape(text)}{beside}</th>' if text else "<td></td>"
        for text, beside in zip((corner, *columns), room, strict=True)
    )
    kind = ' class="many"' if sum(with_intervals) > _FEW else ""
    body = []
    for name, cells in lines:
        if not cells:
            head_of_group = f'<th scope="rowgroup" colspan="{1 + len(columns)}">{name}</th>'
            body.append(f'</tbody><tbody><tr class="group">{head_of_group}</tr>')
            continue
        shown = (
            f"<td{_MARKS.get(value[:1], '')}>{value}{f' <small>{interval}</small>' if wide else ''}</td>"
            for (value, interval), wide in zip(cells, with_intervals, strict=True)
        )
        body.append(f'<tr><th scope="row">{name}</th>{"".join(shown)}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def side_by_side(addresses: Mapping[str, str], prompt: str) -> str:
    """What became of one prompt in each arm, with the name of the arm under each image.

    Args:
        addresses: Arm → address of the image.
        prompt: Under all of them.

    Example:
        >>> side_by_side({"plain": "data:,"}, "a cat").count("plain")
        2
    """
    images = "".join(
        f'<span><img src="{address}" alt="{escape(arm)}">{escape(arm)}</span>' for arm, address in addresses.items()
    )
    return f'<figure class="pair"><div>{images}</div><figcaption>{escape(prompt)}</figcaption></figure>'


def gallery(title: str, arms: int, figures: Iterable[str]) -> str:
    """What `side_by_side` made, under a title.

    Args:
        title: Above them.
        arms: How many images there are in each.
        figures: As HTML.
    """
    return f'<h3>{escape(title)}</h3><div class="arms" style="--arms: {arms}">{"".join(figures)}</div>'


def facts_list(facts: Mapping[str, Any]) -> str:
    """What was done, label → text.

    Example:
        >>> facts_list({"people_limit": None, "thresholds": {"seen": {"far": 0.59685873}, "unseen": {"far": 0.5}}})
        '<dl><dt>people limit</dt><dd>–</dd><dt>thresholds</dt><dd>seen (far 0.596859), unseen (far 0.5)</dd></dl>'
    """
    lines = (f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_said(value))}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(lines)}</dl>"


def _said(value: Any) -> str:
    """A value of JSON as people write it."""
    if isinstance(value, Mapping):
        inner = {key: f"({_said(one)})" if isinstance(one, Mapping) else _said(one) for key, one in value.items()}
        return ", ".join(f"{key} {text}" for key, text in inner.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _parted(text: str) -> tuple[str, str]:
    """A figure and its interval, or nothing in place of that."""
    value, bracket, interval = escape(text).partition(" [")
    return value, bracket.strip() + interval
