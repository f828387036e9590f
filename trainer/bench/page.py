"""The bench as one HTML page that needs nothing else: table, plot, and the same prompts drawn with each peer."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from apl_guard.trainer.bench.run import BenchResult
from apl_guard.trainer.bench.table import cell, columns_of, described
from apl_guard.trainer.evaluate.result import first_of_each
from apl_guard.trainer.report.page import fill
from apl_guard.trainer.report.parts import facts_list, table
from apl_guard.trainer.report.pictures import address, png_address

_SHOWN = {"seen": 6, "unseen": 3, "generic": 4}
_TITLES = {"seen": "People on the list", "unseen": "People not on the list", "generic": "Prompts without a name"}


def write_page(result: BenchResult, plot: bytes, facts: Mapping[str, Any]) -> str:
    """Write the page.

    Args:
        result: Figures and pictures.
        plot: The plot, as PNG.
        facts: What was done.
    """
    return fill(
        _BODY,
        title="apl-guard bench",
        style=_STYLE,
        table=_table(result),
        columns="".join(f"<li><b>{escape(c.title)}</b>: {escape(c.says)}</li>" for c in columns_of(result)),
        plot=png_address(plot),
        grids="".join(_grid(result, suite) for suite in _SHOWN),
        peers=facts_list({key: described(options) for key, options in result.settings["peers"].items()}),
        facts=facts_list(facts),
    )


def _table(result: BenchResult) -> str:
    columns = columns_of(result)
    rows = [(key, [cell(row, column) for column in columns]) for key, row in result.rows.items()]
    return table([column.title for column in columns], rows, corner="method")


def _grid(result: BenchResult, suite: str) -> str:
    """The first prompts, each about somebody else: a row a prompt, a column a peer. Nothing here looks at a picture."""
    asked = next(iter(result.drawn.values()))[suite].asked
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in result.drawn)
    rows = []
    for k in first_of_each(asked)[: _SHOWN[suite]]:
        cells = []
        for key, suites in result.drawn.items():
            drawn = suites[suite]
            image = f'<img src="{address(drawn.pictures[k])}" alt="{escape(key)}">'
            inside = "no image" if drawn.refused[k] else image
            cells.append(f"<td>{inside}</td>")
        rows.append(f'<tr><th scope="row">{escape(asked[k].text)}</th>{"".join(cells)}</tr>')
    pictures = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h3>{_TITLES[suite]}</h3><div class="scroll grid" tabindex="0">{pictures}</div>'


_STYLE = """\
main { max-width: 1400px; }
.grid th, .grid td { text-align: center; padding: 3px; border: 0; font-size: .78rem; color: var(--soft); }
.grid thead th { max-width: 92px; white-space: normal; vertical-align: bottom; }
.grid tbody th { text-align: left; width: 200px; min-width: 160px; white-space: normal; padding-right: 10px; }
.grid img { width: 92px; aspect-ratio: 1; border-radius: 5px; display: block; margin: 0 auto; }
@page { size: landscape; }
.plot { width: 100%; max-width: 900px; background: white; border-radius: 10px; }
"""
_BODY = """\
<h1>Peers side by side</h1>
<p>Every method got the same list of people, drew the same prompts from the same seeds, and was looked at by the same
judges. Everybody here is invented, and the model is a miniature: what this says of methods on large models has to be
measured there.</p>
<h2>Figures</h2>
<p>In brackets are 95&nbsp;% intervals. – was not measured.</p>
$table
<ul>$columns</ul>
<h2>Leak against what is kept</h2>
<p>The further down and to the right, the better. Bars are 95&nbsp;% intervals.</p>
<img class="plot" src="$plot" alt="Leak of each method against what it keeps; the figures are in the table above">
<h2>Same prompt, same seed, one column a method</h2>
<p>The first prompts of each group, not chosen ones.</p>
$grids
<h2>Methods</h2>
$peers
<h2>How this was made</h2>
$facts
"""
