"""The pages of the reports, with `$name` where their parts go. They hold everything that they need."""

HEAD = """\
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
</style>
</head>
<body>
<main>
"""

FOOT = """\
</main>
</body>
</html>
"""

PAGE = (
    HEAD
    + """\
<h1>Named people in, nobody in particular out</h1>
<p>A text-to-image model that draws people by name was put behind <code>Guard(pipe,
policy="anonymize_faces")</code>.
The guard puts a few learned vectors in front of each prompt. Everybody here is invented; an
independent recogniser,
which the guard has never seen, says who is recognised.</p>
<div class="cards">$headline</div>

<h2>Plain and guarded, same prompts, same seeds</h2>
<p>Left without the guard, right with it. These are the first pictures of each group, not chosen ones.</p>
$pictures

<h2>Figures</h2>
<p>In brackets are 95&nbsp;% intervals. <em>Neutral</em> is the plain model given the prompt with the
name replaced by words such as “a woman”: the best that can be reached. <em>Leak</em> is the share of pictures
in which the recogniser finds the named person, at a threshold that lets through one of a thousand people with the same
attributes. <em>Likely</em> means that these are too few pictures to be sure.</p>
<div class="scroll"><table>
<thead><tr><th></th><th>plain</th><th>neutral</th><th>guarded</th><th>goal</th><th></th></tr></thead>
<tbody>$table</tbody>
</table></div>

<h2>Training</h2>
<p>The gap closed is how much nearer the model's answer to a name has come to its answer to the
neutral prompt; the drift is how far its answers to other prompts have moved, as a
share of what deleting the prompt would do.</p>
<div class="charts">$curves</div>
$tradeoff

<h2>How this was made</h2>
<dl>$facts</dl>
"""
    + FOOT
)
"""Of the demo."""

EVALUATION_PAGE = (
    HEAD
    + """\
<h1>What the guard hides, and what it leaves alone</h1>
<p>The same prompts from the same seeds, drawn by the model as it is (<em>plain</em>), with names replaced by words
such as “a woman” (<em>neutral</em>), and through the guard (<em>guarded</em>). In brackets are 95&nbsp;% intervals:
of Clopper and Pearson for shares, of the bootstrap for distances and means.</p>
<pre><code>$command</code></pre>
<div class="cards">$headline</div>
$goals

<h2>Figures</h2>
$tables

$curves

<h2>Pictures</h2>
<p>The first ones of different people and prompts, not chosen ones.</p>
$pictures

<h2>How this was made</h2>
<dl>$facts</dl>
"""
    + FOOT
)
"""Of an evaluation."""
