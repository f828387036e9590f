"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.doubts import doubts
from apl_guard.trainer.evaluate.goals import compare
from apl_guard.trainer.evaluate.goals_table import goals_summary, goals_table
from apl_guard.trainer.evaluate.result import (
    ROWS,
    Arms,
    Asked,
    EvalResult,
    Figures,
    Pictures,
    apart_from_attacks,
    arm_label,
    arms_of,
    attack_rows,
    first_of_each,
    show_figure,
)
from apl_guard.trainer.report.charts import line_chart
from apl_guard.trainer.report.page import fill
from apl_guard.trainer.report.parts import card, facts_list, gallery, side_by_side, table
from apl_guard.trainer.report.pictures import address

_SHOWN = 8
_HEADLINES = (
    ("leak_far_1e-3", "images in which the person is recognised, at FAR 1e-3"),
    ("cosine_mean", "mean cosine to the person"),
    ("attribute_fidelity", "of what prompts ask for is drawn"),
)


def write_report(result: EvalResult, command: str, curves: Sequence[Curve] = ()) -> str:
    """Write the page.

    Args:
        result: An evaluation; the pictures that it kept are shown.
        command: What was typed.
        curves: Curves to draw beside its figures.

    Example:
        >>> arms = {"plain": {"images": 4, "top1": 1.0}, "guarded": {"images": 4, "top1": 0.0}}
        >>> page = write_report(EvalResult({"seen": arms}), "apl-guard eval")
        >>> "<table>" in page, "http" in page
        (True, False)
    """
    # Goals are of the suites; a group of a protocol may be called like one, for it has the name of a file.
    rows = [] if "protocol" in result.settings else compare(result)
    suites, attacks = apart_from_attacks(result.suites)
    goals = ""
    if rows:
        goals = (
            "<h2>Against the goals</h2>"
            "<p><em>Likely</em> means that these are too few images to be sure.</p>"
            f"{goals_table(rows)}"
        )
    return fill(
        _BODY,
        title=escape(f"apl-guard eval: {', '.join(suites)}"),
        command=escape(command),
        headline="".join(_headline(suite, arms) for suite, arms in suites.items()),
        summary=goals_summary(rows),
        goals=goals,
        doubts="".join(f"<p><strong>{escape(doubt)}.</strong></p>" for doubt in doubts(result)),
        tables="".join(_table(suite, arms) for suite, arms in suites.items()) + _attacks(attacks),
        curves=_curves(curves),
        pictures="".join(_gallery(suite, result.asked[suite], arms) for suite, arms in result.images.items()),
        facts=facts_list(result.settings),
    )


def _headline(suite: str, arms: Mapping[str, Figures]) -> str:
    """The first figure of a suite that says whether it works, plain and guarded."""
    for key, label in _HEADLINES:
        plain, guarded = (arms.get(arm, {}) for arm in ("plain", "guarded"))
        if None not in (plain.get(key), guarded.get(key)):
            return card(show_figure(plain, key), show_figure(guarded, key), f"{suite}: {label}")
    return ""


def _table(suite: str, arms: Mapping[str, Figures]) -> str:
    columns = arms_of(arms)
    rows = [
        (label, [show_figure(arms[arm], key) for arm in columns])
        for key, label in ROWS
        if any(arms[arm].get(key) is not None for arm in columns)
    ]
    return f"<h3>{escape(suite)}</h3>{table([arm_label(arm) for arm in columns], rows, corner='figure')}"


def _attacks(attacks: Mapping[str, Arms]) -> str:
    if not attacks:
        return ""
    columns = list(dict.fromkeys(arm for arms in attacks.values() for arm in arms_of(arms)))
    rows = [(name, [*cells, counts]) for name, cells, counts in attack_rows(attacks, columns)]
    heads = [arm_label(arm) for arm in columns]
    return f"<h3>attacks: leak at FAR 1e-3</h3>{table([*heads, 'no image or prefix'], rows, corner='attack')}{_CHECKED}"


def _curves(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    return f'<h2>Curves</h2><div class="charts">{"".join(map(curve_figure, curves))}</div>'


def curve_figure(curve: Curve) -> str:
    """A curve as a chart with its intervals, and its points as a table."""
    chart = line_chart(curve.series, curve.x, curve.title, percent=True, dots=True, reach=curve.reach)
    names = list(curve.series)
    rows = [(str(point["label"]), [show_figure(point, name) for name in names]) for point in curve.points]
    return f"<div>{chart}{table(names, rows, corner=curve.x)}</div>"


def _gallery(suite: str, asked: Sequence[Asked], arms: Mapping[str, Pictures]) -> str:
    """The first picture of different people, or of different prompts, in every arm."""
    names = [name for name in arms_of({arm: {} for arm in arms}) if len(arms[name]) == len(asked)]
    shown = (
        side_by_side({arm_label(arm): address(arms[arm][k]) for arm in names}, asked[k].text)
        for k in first_of_each(asked)[:_SHOWN]
    )
    return gallery(suite, len(names), shown)


_CHECKED = "<p><em>Checked</em>: with the output check behind it, which withholds images.</p>"
_BODY = """\
<h1>What the guard hides, and what it leaves alone</h1>
<p>The same prompts from the same seeds, drawn by the model as it is (<em>plain</em>), with names replaced by words
such as “a woman” (<em>neutral</em>), and through the guard (<em>guarded</em>).</p>
<div class="cards">$headline</div>
<p>Plain → guarded, with its 95&nbsp;% interval. $summary</p>
$doubts
$goals

<h2>Figures</h2>
<p>In brackets are 95&nbsp;% intervals: of Clopper and Pearson for shares, with several images of one person counted as
the fewer that they are worth (Korn and Graubard); of the bootstrap for distances and means.</p>
$tables

$curves

<h2>Images</h2>
<p>The first ones of different people and prompts, not chosen ones.</p>
$pictures

<h2>How this was made</h2>
<pre><code>$command</code></pre>
$facts
"""
