"""The bench as a table: text for the shell, Markdown for documents, rows for the page.

A figure that was not measured is "–". A refused prompt has no picture, which is in a column of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from apl_guard.trainer.bench.run import BenchResult
from apl_guard.trainer.evaluate.result import Figures, show_number, show_share

Kind = Literal["rate", "number", "seconds", "times", "bytes"]


@dataclass(frozen=True)
class Column:
    """One figure of each peer."""

    figure: str
    title: str
    kind: Kind
    says: str
    """What it is, in a line."""


COLUMNS = (
    Column("leak_seen", "leak, listed", "rate", "listed people verified at FAR 1e-3"),
    Column("leak_unseen", "leak, not listed", "rate", "the same of people whom the model knows and the list does not"),
    Column("leak_personalised", "leak, personalised", "rate", "the same of people added to the model afterwards"),
    Column(
        "leak_restyled", "leak, restyled", "rate", "listed people, what was learned put on a restyled model as it is"
    ),
    Column("h_c", "H_c", "number", "harmonic mean of 1 − accuracy on listed and accuracy on other people"),
    Column("refused", "no image", "rate", "prompts with listed names that got none"),
    Column("face_ratio", "face", "rate", "prompts with listed names that got an image with a face"),
    Column("scene_fidelity", "scene kept", "rate", "of what these prompts ask for besides the person"),
    Column("generic_fidelity", "generic kept", "rate", "of what prompts without names ask for"),
    Column("frechet", "Fréchet", "number", "distance of those images from plain ones of other seeds"),
    Column("training_seconds", "learning", "seconds", "by the clock, once for the whole list"),
    Column("seconds_per_image", "an image", "seconds", "by the clock"),
    Column("time_ratio", "× plain", "times", "the same as a multiple of the plain model's, timed in turns"),
    Column("shipped_bytes", "shipped", "bytes", "beside the model"),
)


def columns_of(result: BenchResult) -> list[Column]:
    """Those columns that were measured for anybody."""
    return [column for column in COLUMNS if any(column.figure in row for row in result.rows.values())]


def cell(row: Figures, column: Column, interval: bool = True) -> str:
    """One figure, for people.

    Example:
        >>> cell({"leak_seen": 0.125, "leak_seen_ci": [0.04, 0.29]}, COLUMNS[0])
        '12.5 % [4.0, 29.0]'
        >>> cell({"shipped_bytes": 10320}, COLUMNS[-1]), cell({}, COLUMNS[0])
        ('10.3 kB', '–')
    """
    value = row.get(column.figure)
    if not isinstance(value, (int, float)):
        return "–"
    reach = row.get(f"{column.figure}_ci") if interval else None
    match column.kind:
        case "rate":
            return show_share(value, reach)
        case "number":
            return show_number(value, reach)
        case "seconds":
            return f"{value:.0f} s" if value >= 10 else f"{value:.2f} s"
        case "times":
            return f"{value:.2f}"
        case "bytes":
            return f"{value / 1000:.1f} kB" if value < 1e6 else f"{value / 1e6:.1f} MB"


def described(options: Mapping[str, object]) -> str:
    """Where a peer was published, and its options.

    Example:
        >>> described({"source": "Ada, 1843", "steps": 300}), described({"source": ""})
        ('Ada, 1843; steps 300', '–')
    """
    said = ", ".join(f"{name} {value}" for name, value in options.items() if name != "source" and value != "")
    return "; ".join(part for part in (str(options.get("source", "")), said) if part) or "–"


def to_text(result: BenchResult) -> str:
    """For the shell: without intervals, which are in the other two."""
    columns = columns_of(result)
    lines = [["", *(column.title for column in columns)]]
    lines += [[key, *(cell(row, column, interval=False) for column in columns)] for key, row in result.rows.items()]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join("  " + text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def to_markdown(result: BenchResult, command: str) -> str:
    """A document: the table with intervals, what each column says, how it was done."""
    columns = columns_of(result)
    lines = ["# Peers side by side", "", f"    {command}", ""]
    lines.append("| | " + " | ".join(column.title for column in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for key, row in result.rows.items():
        lines.append(f"| {key} | " + " | ".join(cell(row, column) for column in columns) + " |")
    lines += ["", "In brackets are 95 % intervals.", ""]
    lines += [f"- **{column.title}**: {column.says}" for column in columns]
    lines += ["", "| | options |", "|---|---|"]
    for key, options in result.settings["peers"].items():
        lines.append(f"| {key} | {described(options)} |")
    facts = {name: value for name, value in result.settings.items() if name != "peers"}
    lines += ["", ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    return "\n".join(lines)
