"""Style sheet and script of the report's page."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root {
  --page: #f6f7f9; --surface: #ffffff; --line: #e3e6eb; --text: #16191f; --soft: #5c6470; --grid: #eceef2;
  --c0: #4f46e5; --c1: #e8590c; --c2: #0b8f6a; --c3: #c2257a; --c4: #0a7ea4; --c5: #967000;
  --c6: #4d8a0f; --c7: #9aa1ad;
  --good: #0b7a53; --good-soft: #dff5ea; --bad: #c02626; --bad-soft: #fde8e8; --warn: #925600; --warn-soft: #fdf0d5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --surface: #171b21; --line: #2a3038; --text: #e8eaee; --soft: #98a1ae; --grid: #232931;
    --c0: #8b8cf8; --c1: #ff9354; --c2: #3ccf9f; --c3: #f472b6; --c4: #4cc0e8; --c5: #e0bb3c;
    --c6: #a3d94a; --c7: #6b7482;
    --good: #54d6a3; --good-soft: #12352a; --bad: #ff8585; --bad-soft: #3d1a1c; --warn: #f0b355; --warn-soft: #38290f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text); -webkit-font-smoothing: antialiased;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; display: grid; gap: 20px; }
header { display: flex; justify-content: space-between; align-items: flex-start; gap: 24px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 16px; letter-spacing: -0.005em; }
.sub { margin: 6px 0 0; color: var(--soft); }
.status { padding: 4px 12px; border-radius: 999px; font-size: 13px; font-weight: 600; white-space: nowrap; }
.status.finished { color: var(--good); background: var(--good-soft); }
.status.interrupted { color: var(--warn); background: var(--warn-soft); }
.status.failed { color: var(--bad); background: var(--bad-soft); }
.error {
  margin: 0; padding: 12px 16px; border-radius: 10px; color: var(--bad); background: var(--bad-soft);
  font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
section, .card { background: var(--surface); border: 1px solid var(--line); border-radius: 12px; }
section { padding: 20px 22px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 0; }
.card { padding: 14px 16px; min-width: 0; }
.card dt { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.card dd { margin: 2px 0 0; font-size: 22px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.3; }
.card dd, td, .legend b, .legend i { font-variant-numeric: tabular-nums; }
.card dd.small { font-size: 15px; overflow-wrap: anywhere; line-height: 1.4; padding-top: 3px; }
.card dd.note { color: var(--soft); font-size: 13px; font-weight: 400; letter-spacing: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 28px 32px; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
figure svg { margin-top: auto; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 2px 0 8px; padding: 0; font-size: 13px;
}
.legend.wide { gap: 6px 28px; margin: 14px 0 0; font-size: 14px; }
.legend li { color: var(--soft); overflow-wrap: anywhere; }
.legend b { color: var(--text); font-weight: 600; }
.legend i { font-style: normal; opacity: 0.85; }
.legend i.bad { color: var(--bad); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.bar { display: block; width: 100%; height: 26px; border-radius: 7px; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--line); }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3; }
.tick, .label { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.main, .raw { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.raw { stroke-width: 1; opacity: 0.28; }
.missing { fill: var(--bad); }
.line0 path { stroke: var(--c0); } .line0 circle, .fill0 { fill: var(--c0); background: var(--c0); }
.line1 path { stroke: var(--c1); } .line1 circle, .fill1 { fill: var(--c1); background: var(--c1); }
.line2 path { stroke: var(--c2); } .line2 circle, .fill2 { fill: var(--c2); background: var(--c2); }
.line3 path { stroke: var(--c3); } .line3 circle, .fill3 { fill: var(--c3); background: var(--c3); }
.line4 path { stroke: var(--c4); } .line4 circle, .fill4 { fill: var(--c4); background: var(--c4); }
.line5 path { stroke: var(--c5); } .line5 circle, .fill5 { fill: var(--c5); background: var(--c5); }
.fill6 { fill: var(--c6); background: var(--c6); }
.fill7 { fill: var(--c7); background: var(--c7); }
.pair {
  display: grid; align-items: start; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
}
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: 7px 0; border-bottom: 1px solid var(--grid); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
.number { text-align: right; padding-left: 20px; overflow-wrap: normal; }
.facts th { width: 46%; padding-right: 20px; }
.path { margin: 10px 0 0; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
pre {
  margin: 0; overflow-x: auto; font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
#tip {
  position: fixed; pointer-events: none; padding: 8px 11px; border-radius: 8px; font-size: 13px; line-height: 1.45;
  background: var(--surface); border: 1px solid var(--line); box-shadow: 0 6px 20px rgb(0 0 0 / 0.16);
  font-variant-numeric: tabular-nums; white-space: nowrap; z-index: 1;
}
@media print { section, .card { break-inside: avoid; } }
"""

# Shows the values under the pointer. The page is complete without it.
SCRIPT = """
for (const svg of document.querySelectorAll('svg.chart')) {
  const tip = document.getElementById('tip');
  const lines = JSON.parse(svg.dataset.series).filter(line => line.points.length);
  const cursor = svg.querySelector('.axis').cloneNode();
  cursor.setAttribute('class', 'cursor');
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  svg.addEventListener('pointermove', event => {
    if (!lines.length) return;
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const hits = lines.map(line => [line, nearest(line.points, x)]);
    const at = hits.map(hit => hit[1]).reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    cursor.setAttribute('x1', at[0]);
    cursor.setAttribute('x2', at[0]);
    cursor.setAttribute('y1', 12);
    svg.append(cursor);
    tip.replaceChildren(...hits.map(([line, point]) => {
      const row = document.createElement('div');
      const swatch = document.createElement('span');
      swatch.className = 'swatch fill' + line.color;
      row.append(swatch, line.name + ' ' + point[3] + ' at ' + point[2]);
      return row;
    }));
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8) + 'px';
    tip.style.top = event.clientY + 16 + 'px';
  });
  svg.addEventListener('pointerleave', () => { tip.hidden = true; cursor.remove(); });
}
"""
