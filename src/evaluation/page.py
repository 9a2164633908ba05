"""Style and script of the report: one file, no network, dark and light."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2329; --soft: #5f6b75; --line: #d7dde2; --paper: #fff; --card: #f6f8f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ecef; --soft: #a0acb5; --line: #39434b; --paper: #14191d; --card: #1d242a; }
}
body { margin: 0 auto; max-width: 1240px; padding: 24px; font: 15px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
p, dl { color: var(--soft); margin: 0 0 8px; } code { font-size: 13px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; margin: 8px 0 20px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .title { font-size: 14px; font-weight: 600; }
svg .group { font-weight: 600; fill: var(--soft); } svg .axis { stroke: var(--soft); }
svg .zero { stroke: var(--soft); stroke-dasharray: 4 4; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin-bottom: 12px; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.clear { font-weight: 700; } small { color: var(--soft); }
details { margin: 6px 0; } summary { cursor: pointer; }
.filter { position: sticky; top: 0; background: var(--paper); padding: 8px 0; z-index: 1; }
select, input { font: inherit; padding: 3px 6px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 12px 0; }
.card h3 { font-size: 15px; margin: 0 0 8px; } .kind { color: var(--soft); font-weight: 400; margin-left: 8px; }
.models { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.models h4 { font-size: 13px; margin: 0 0 6px; }
.samples { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); }
figure { margin: 0; min-width: 0; } figure img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff;
  border: 1px solid var(--line); box-sizing: border-box; }
img.small { image-rendering: pixelated; }
figcaption { font-size: 12px; overflow-wrap: anywhere; } .plan { color: var(--soft); }
[hidden] { display: none !important; }
"""

SCRIPT = """
const kind = document.getElementById('kind'), words = document.getElementById('words');
const shown = document.getElementById('shown'), cards = [...document.querySelectorAll('.card')];
function filter() {
  const wanted = words.value.toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = (kind.value === '' || card.dataset.kind === kind.value)
      && card.textContent.toLowerCase().includes(wanted);
    card.hidden = !fits;
    count += fits;
  }
  shown.textContent = count + ' of ' + cards.length + ' prompts';
}
kind.addEventListener('input', filter);
words.addEventListener('input', filter);
filter();
"""
