"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import numpy as np

from apl_guard.trainer.demo.page import facts_list, goals_table
from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.goals import compare
from apl_guard.trainer.evaluate.result import ATTACK, ROWS, Asked, EvalResult, Figures, Pictures, arms_of, show_figure
from apl_guard.trainer.report.charts import line_chart
from apl_guard.trainer.report.page import EVALUATION_PAGE

_SHOWN = 8
_LARGEST_SIDE = 256
_HEADLINES = (
    ("leak_far_1e-3", "recognised at FAR 1e-3"),
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
    rows = compare(result)
    attacks = {suite: arms for suite, arms in result.suites.items() if suite.startswith(ATTACK)}
    suites = {suite: arms for suite, arms in result.suites.items() if suite not in attacks}
    goals = ""
    if rows:
        goals = (
            '<h2>Against the goals</h2><div class="scroll"><table><thead><tr><th></th><th>plain</th><th>neutral</th>'
            f"<th>guarded</th><th>goal</th><th></th></tr></thead><tbody>{goals_table(rows)}</tbody></table></div>"
            "<p><em>Likely</em> means that these are too few pictures to be sure.</p>"
        )
    return Template(EVALUATION_PAGE).substitute(
        title="apl-guard eval",
        command=escape(command),
        headline="".join(_headline(suite, arms) for suite, arms in suites.items()),
        goals=goals,
        tables="".join(_table(suite, arms) for suite, arms in suites.items()) + _attacks(attacks),
        curves=_curves(curves),
        pictures="".join(_gallery(suite, result.asked[suite], arms) for suite, arms in result.images.items()),
        facts=facts_list(_facts(result.settings)),
    )


def _headline(suite: str, arms: Mapping[str, Figures]) -> str:
    """The first figure of a suite that says whether it works, plain and guarded."""
    for key, label in _HEADLINES:
        values = [arms.get(arm, {}).get(key) for arm in ("plain", "guarded")]
        if None not in values:
            plain, guarded = (escape(show_figure({key: value}, key)) for value in values)
            return (
                f'<div class="card"><span class="from">{plain}</span><span class="arrow">→</span>'
                f'<span class="to">{guarded}</span><p>{escape(suite)}: {escape(label)}</p></div>'
            )
    return ""


def _table(suite: str, arms: Mapping[str, Figures]) -> str:
    columns = arms_of(arms)
    head = "".join(f"<th>{escape(arm.replace('_', ' '))}</th>" for arm in columns)
    lines = [
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{escape(show_figure(arms[arm], key))}</td>" for arm in columns)
        + "</tr>"
        for key, label in ROWS
        if any(arms[arm].get(key) is not None for arm in columns)
    ]
    return (
        f'<h3>{escape(suite)}</h3><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _attacks(attacks: Mapping[str, Mapping[str, Figures]]) -> str:
    """One row for each class of attacks: the leak in each arm, and how many calls were refused or pictures withheld."""
    if not attacks:
        return ""
    columns = list(dict.fromkeys(arm for arms in attacks.values() for arm in arms_of(arms)))
    head = "".join(f"<th>{escape(arm.replace('_', ', '))}</th>" for arm in columns)
    lines = []
    for suite, arms in attacks.items():
        cells = "".join(f"<td>{escape(show_figure(arms.get(arm, {}), 'leak_far_1e-3'))}</td>" for arm in columns)
        stopped = {key: max(figures.get(key, 0) for figures in arms.values()) for key in ("refused", "withheld")}
        notes = ", ".join(f"{count} {key}" for key, count in stopped.items() if count)
        lines.append(f"<tr><th>{escape(suite.removeprefix(ATTACK))}</th>{cells}<td>{notes}</td></tr>")
    return (
        '<h3>attacks, by leak at FAR 1e-3</h3><div class="scroll"><table><thead><tr><th></th>'
        f"{head}<th></th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    charts = "".join(
        line_chart(curve.series, curve.x, curve.title, percent=True, dots=True) + _points(curve) for curve in curves
    )
    return f'<h2>Curves</h2><div class="charts">{charts}</div>'


def _points(curve: Curve) -> str:
    """The points of a curve as a table, which gives intervals too."""
    names = list(curve.series)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(str(point['label']))}</th>"
        + "".join(f"<td>{escape(show_figure(point, name))}</td>" for name in names)
        + "</tr>"
        for point in curve.points
    )
    return (
        f'<div class="scroll"><table><thead><tr><th>{escape(curve.title)}</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _gallery(suite: str, asked: Sequence[Asked], arms: Mapping[str, Pictures]) -> str:
    """The first picture of different people, or of different prompts, in every arm."""
    shown: dict[str, int] = {}
    for k, one in enumerate(asked):
        shown.setdefault(one.person or one.text, k)
    names = [name for name in arms_of({arm: {} for arm in arms}) if len(arms[name]) == len(asked)]
    cells = "".join(
        '<figure class="pair"><div>'
        + "".join(f'<span><img src="{_source(arms[arm][k])}" alt="{escape(arm)}">{escape(arm)}</span>' for arm in names)
        + f"</div><figcaption>{escape(asked[k].text)}</figcaption></figure>"
        for k in list(shown.values())[:_SHOWN]
    )
    return f'<h3>{escape(suite)}</h3><div class="arms">{cells}</div>'


def _source(picture: Pictures) -> str:
    """A picture, shape (H, W, 3), as an address that holds it; large ones are reduced."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    is_large = max(image.size) > _LARGEST_SIDE
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG" if is_large else "PNG", quality=88)
    kind = "jpeg" if is_large else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _facts(settings: Mapping[str, Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for key, value in settings.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        facts[key.replace("_", " ")] = text
    return facts
