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
:root { color-scheme: light dark; --ground: #fbfaf8; --sheet: #fff; --ink: #1d2126; --soft: #5f6871;
  --rule: #e3e1dc;
  --c0: #c2410c; --c1: #1d6fb8; --good: #15803d; --bad: #b91c1c; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --sheet: #1c2024; --ink: #e8e6e1;
  --soft: #9aa3ac;
  --rule: #31373d; --c0: #fb923c; --c1: #60a5fa; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; }
h2 { margin: 56px 0 8px; font-size: 1.3rem; }
h3 { margin: 28px 0 10px; font-size: 1rem; color: var(--soft); font-weight: 600; }
p, li { max-width: 68ch; }
small { color: var(--soft); font-size: .85em; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 16px;
  margin: 28px 0 12px; }
.card { background: var(--sheet); border: 1px solid var(--rule); border-radius: 12px; padding: 16px 20px; }
.card p { margin: 4px 0 0; color: var(--soft); }
.from, .to { white-space: nowrap; font-variant-numeric: tabular-nums; }
.from { color: var(--soft); font-size: 1.1rem; }
.to { font-size: 1.9rem; font-weight: 700; line-height: 1.3; }
.arms { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(var(--arms) * 118px)), 1fr)); }
.pair { margin: 0; background: var(--sheet); border: 1px solid var(--rule); border-radius: 10px; padding: 8px;
  color: var(--soft); line-height: 1.35; }
.pair div { display: flex; gap: 6px; } .pair span { flex: 1; font-size: .75rem; }
.pair img { width: 100%; aspect-ratio: 1; border-radius: 6px; display: block; }
.pair figcaption { font-size: .82rem; padding: 6px 2px 0; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { text-align: left; font-weight: 500; }
thead th { text-align: right; color: var(--soft); }
th:first-child, thead td { text-align: left; position: sticky; left: 0; background: var(--ground); padding-left: 0; }
table small { display: inline-block; min-width: 7.6em; text-align: left; }
.many small, .charts small { display: block; min-width: 0; text-align: right; }
.group th { padding-top: 20px; font-weight: 700; }
.met { color: var(--good); } .missed { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px 32px; }
figure { margin: 12px 0; }
figcaption .key { display: inline-block; margin-left: 14px; font-size: .85rem; color: var(--soft); }
.key i { display: inline-block; width: 22px; border-top: 3px solid var(--line); margin-right: 6px;
  vertical-align: middle; }
.chart { width: 100%; max-width: 620px; height: auto; overflow: visible; color: var(--soft); }
.chart text { fill: currentColor; font-size: 12px; }
.chart .rule { stroke: var(--rule); }
.line, .bar { fill: none; stroke: var(--line); stroke-width: 2; } .bar { stroke-width: 1.2; }
.dot { fill: var(--line); }
.line0 { --line: var(--c0); } .line1 { --line: var(--c1); }
.line2 { --line: var(--ink); } .line3 { --line: var(--soft); }
.line.line2 { stroke-dasharray: 7 4; } i.line2 { border-top-style: dashed; }
.line.line3 { stroke-dasharray: 2 3; } i.line3 { border-top-style: dotted; }
pre { background: var(--sheet); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px;
  font-size: .88rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 24px 16px 48px; } h1 { font-size: 1.6rem; } h2 { margin-top: 40px; }
  th, td { padding: 7px 8px; } th:first-child { white-space: normal; min-width: 92px; max-width: 34vw; }
  .chart text { font-size: 17px; } dl { display: block; } dd { margin-bottom: 8px; } }
@media (max-width: 900px) { table small { display: block; min-width: 0; text-align: right; } }
@media print {
  body { background: none; font-size: 10pt; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { font-size: 8pt; } th, td { padding: 2px 5px; }
  table small { display: block; min-width: 0; text-align: right; }
  th:first-child { position: static; white-space: normal; }
  h2, h3 { break-after: avoid; } figure, .card, tr { break-inside: avoid; } h2 { margin-top: 24px; }
  .arms { grid-template-columns: repeat(auto-fill, minmax(calc(var(--arms) * 76px), 1fr)); } }
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
