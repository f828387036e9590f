"""The shell of every page: one HTML file that needs nothing else, in light and in dark."""

from __future__ import annotations

from string import Template

__all__ = ["fill"]


def fill(body: str, *, title: str, style: str = "", **parts: str) -> str:
    """A whole page.

    Args:
        body: HTML with `$name` where a part goes.
        title: Of the window.
        style: CSS beside that of all pages.
        parts: Name → HTML.

    Example:
        >>> page = fill("<h1>$what</h1>", title="demo", what="a figure")
        >>> page.startswith("<!doctype html>"), "<h1>a figure</h1>" in page
        (True, True)
    """
    return Template(_HEAD + body + _FOOT).substitute(title=title, style=style, **parts)


_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #fbfaf8; --sheet: #fff; --ink: #1d2126; --soft: #66707a;
  --rule: #e3e1dc;
  --c0: #c2410c; --c1: #1d6fb8; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --sheet: #1c2024; --ink: #e8e6e1;
  --soft: #9aa3ac;
  --rule: #31373d; --c0: #fb923c; --c1: #60a5fa; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; }
h2 { margin: 56px 0 8px; font-size: 1.3rem; }
h3 { margin: 28px 0 10px; font-size: 1rem; color: var(--soft); font-weight: 600; }
p { max-width: 68ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 16px;
  margin: 28px 0; }
.card { background: var(--sheet); border: 1px solid var(--rule); border-radius: 12px; padding: 18px 20px; }
.card p { margin: 4px 0 0; color: var(--soft); }
.from, .arrow { color: var(--soft); font-size: 1.2rem; }
.arrow { margin: 0 8px; }
.to { font-size: 2rem; font-weight: 700; font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(234px, 1fr)); gap: 14px; }
.pair { margin: 0; background: var(--sheet); border: 1px solid var(--rule); border-radius: 10px;
  padding: 8px; }
.pair img { width: 50%; aspect-ratio: 1; display: inline-block; vertical-align: top;
  border-radius: 6px; padding: 2px; }
.pair figcaption { font-size: .82rem; color: var(--soft); padding: 6px 4px 0; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { text-align: left; font-weight: 500; }
thead th { text-align: right; color: var(--soft); }
thead th:first-child { text-align: left; }
.suite th { padding-top: 20px; font-weight: 700; }
.met { color: var(--good); } .missed { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 20px; }
.charts figure, main > figure { margin: 12px 0; }
figcaption .key { margin-left: 14px; font-size: .85rem; color: var(--soft); }
.key i { display: inline-block; width: 18px; height: 3px; margin-right: 6px; vertical-align: middle; }
.chart { width: 100%; max-width: 620px; height: auto; color: var(--soft); }
.chart text { fill: currentColor; font-size: 11px; }
.chart .rule { stroke: var(--rule); }
.chart .line { fill: none; stroke-width: 2; }
polyline.line0 { stroke: var(--c0); } polyline.line1 { stroke: var(--c1); }
circle.line0, i.line0 { fill: var(--c0); background: var(--c0); }
circle.line1, i.line1 { fill: var(--c1); background: var(--c1); }
.arms { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 14px; }
.arms .pair div { display: flex; gap: 6px; } .arms .pair span { flex: 1; font-size: .75rem; color: var(--soft); }
.arms .pair img { width: 100%; padding: 0; display: block; }
pre { background: var(--sheet); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font-size: .88rem; }
dd { overflow-wrap: anywhere; }
polyline.line2 { stroke: var(--good); } circle.line2, i.line2 { fill: var(--good); background: var(--good); }
polyline.line3 { stroke: var(--soft); } circle.line3, i.line3 { fill: var(--soft); background: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; }
dt { color: var(--soft); } dd { margin: 0; }
$style</style>
</head>
<body>
<main>
"""

_FOOT = """\
</main>
</body>
</html>
"""
