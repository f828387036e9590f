"""The report of the demo: one HTML file that needs nothing else, and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.goals import compare
from apl_guard.trainer.evaluate.goals_table import goals_summary, goals_table
from apl_guard.trainer.evaluate.page import curve_figure
from apl_guard.trainer.evaluate.result import EvalResult, Pictures, first_of_each, show_figure
from apl_guard.trainer.report.charts import line_chart, smoothed
from apl_guard.trainer.report.page import fill
from apl_guard.trainer.report.parts import card, facts_list, gallery, side_by_side
from apl_guard.trainer.report.pictures import address, png

_SHOWN = 8
_SIDE = 112


@dataclass(frozen=True)
class Pair:
    """One prompt drawn without and with the guard, from one seed."""

    prompt: str
    plain: Pictures
    """Shape (H, W, 3)."""
    guarded: Pictures
    """Shape (H, W, 3)."""


def pick_pairs(result: EvalResult) -> dict[str, list[Pair]]:
    """Choose what to show: the first pictures of different people, of generic people and of objects.

    They are the first ones and not the best ones. Nothing here looks at a picture.

    Args:
        result: An evaluation of the suites seen, unseen and generic, which kept its pictures.
    """
    groups: dict[str, list[Pair]] = {}
    titles = {"seen": "People seen in training", "unseen": "People never seen in training"}
    for suite, arms in result.images.items():
        for k in first_of_each(result.asked[suite]):
            one = result.asked[suite][k]
            title = titles.get(suite) or ("People without a name" if "sex" in one.attributes else "Objects")
            group = groups.setdefault(title, [])
            if len(group) < _SHOWN:
                group.append(Pair(one.text, arms["plain"][k], arms["guarded"][k]))
    return groups


def draw_grid(groups: Mapping[str, Sequence[Pair]]) -> bytes:
    """All pairs as one PNG: a block for each group, in it a column plain and a column guarded."""
    from PIL import Image, ImageDraw, ImageFont

    gap, head = 20, 52
    rows = max((len(pairs) for pairs in groups.values()), default=0)
    width = len(groups) * (2 * _SIDE + 4) + (len(groups) + 1) * gap
    sheet = Image.new("RGB", (width, head + rows * (_SIDE + 4) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    title_font, label_font = ImageFont.load_default(15), ImageFont.load_default(13)
    for k, (title, pairs) in enumerate(groups.items()):
        left = gap + k * (2 * _SIDE + 4 + gap)
        pen.text((left, 8), title, fill="black", font=title_font)
        for column, label in enumerate(("plain", "guarded")):
            x = left + column * (_SIDE + 4)
            pen.text((x, 30), label, fill="#666", font=label_font)
            for row, pair in enumerate(pairs):
                picture = Image.fromarray(pair.plain if column == 0 else pair.guarded)
                sheet.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, head + row * (_SIDE + 4)))
    return png(sheet, optimize=True)


def write_html(
    result: EvalResult,
    groups: Mapping[str, Sequence[Pair]],
    history: Sequence[Mapping[str, Any]],
    tradeoff: Sequence[Curve],
    facts: Mapping[str, str],
) -> str:
    """Write the page.

    Args:
        result: The figures.
        groups: The pictures.
        history: The entries of `history.jsonl` of the training run; may be empty.
        tradeoff: The curve of leak against attributes kept, as `read_curves` gives it; may be empty.
        facts: What was done, label → text.
    """
    rows = compare(result)
    return fill(
        _BODY,
        title="apl-guard demo",
        headline=headline(result),
        summary=goals_summary(rows),
        pictures="".join(_gallery(title, pairs) for title, pairs in groups.items()),
        table=goals_table(rows),
        curves=_curves(history),
        tradeoff="".join(_tradeoff(curve) for curve in tradeoff),
        facts=facts_list(facts),
    )


def headline(result: EvalResult) -> str:
    """The few figures that say whether it works."""
    shown = (
        ("seen", "leak_far_1e-3", "images of people seen in training in which they are recognised"),
        ("unseen", "leak_far_1e-3", "the same of people never seen in training"),
        ("generic", "attribute_fidelity", "of what other prompts ask for is drawn"),
    )
    return "".join(
        card(show_figure(arms["plain"], figure), show_figure(arms["guarded"], figure), label)
        for suite, figure, label in shown
        if (arms := result.suites.get(suite))
    )


def _gallery(title: str, pairs: Sequence[Pair]) -> str:
    shown = (
        side_by_side({"plain": address(pair.plain), "guarded": address(pair.guarded)}, pair.prompt) for pair in pairs
    )
    return gallery(title, 2, shown)


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    steps = [entry for entry in history if "identity" in entry]
    measured = [entry for entry in history if "gap_closed" in entry]
    if not steps:
        return "<p>This prefix came without the history of its training.</p>"
    loss = {name: smoothed([(e["step"], e[name]) for e in steps]) for name in ("identity", "generic")}
    shares = {
        "identity gap closed": [(e["step"], e["gap_closed"]) for e in measured],
        "generic drift": [(e["step"], e["generic_drift"]) for e in measured],
    }
    return line_chart(loss, "step", "Loss") + line_chart(shares, "step", "Evaluation", percent=True)


def _tradeoff(curve: Curve) -> str:
    return (
        f"<h2>{escape(curve.title)}</h2><p>The more of a person a neutral prompt keeps, the more of "
        "the person can be found. Where to stand on this curve is a setting.</p>"
        f"{curve_figure(curve)}"
    )


_BODY = """\
<h1>Named people in, nobody in particular out</h1>
<p>A text-to-image model that draws people by name was put behind <code>Guard(pipe,
policy="anonymize_faces")</code>. The guard puts a few learned vectors in front of each prompt. Everybody here is
invented; an independent recogniser, which the guard has never seen, says who is recognised.</p>
<div class="cards">$headline</div>
<p>Without the guard → with it, and the 95&nbsp;% interval of that. $summary</p>

<h2>Plain and guarded, same prompts, same seeds</h2>
<p><em>Plain</em> is without the guard. These are the first images of each group, not chosen ones.</p>
$pictures

<h2>Figures</h2>
<p>In brackets are 95&nbsp;% intervals. <em>Neutral</em> is the plain model given the prompt with the
name replaced by words such as “a woman”: the best that can be reached. <em>Leak</em> is the share of images
in which the recogniser finds the named person, at a threshold that lets through one of a thousand people with the same
attributes. <em>Likely</em> means that these are too few images to be sure.</p>
$table

<h2>Training</h2>
<p>The gap closed is how much nearer the model's answer to a name has come to its answer to the
neutral prompt; the drift is how far its answers to other prompts have moved, as a
share of what deleting the prompt would do.</p>
<div class="charts">$curves</div>
$tradeoff

<h2>How this was made</h2>
$facts
"""
