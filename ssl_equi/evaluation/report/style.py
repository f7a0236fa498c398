"""The style sheet of the report."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --muted: #5b6570; --line: #dde1e6;
  --series-1: #2f6fdd; --series-2: #c2571a; --series-3: #16806a; --series-4: #8a4fc7; --series-5: #a8762a;
  --ramp-1: #d9c400; --ramp-2: #8fb93a; --ramp-3: #3da37a; --ramp-4: #2b7f95; --ramp-5: #3c5191; --ramp-6: #47206b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --panel: #1e2226; --ink: #e8eaed; --muted: #a3adb8; --line: #353b42;
    --series-1: #7aa7ff; --series-2: #ff9f6b; --series-3: #57cfb2; --series-4: #c49bff; --series-5: #e2b866;
    --ramp-1: #5b4fa8; --ramp-2: #4672b8; --ramp-3: #2f95a8; --ramp-4: #45b487; --ramp-5: #96cc5a; --ramp-6: #f2e34c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 32px 0 10px; }
h3 { font-size: 1rem; font-weight: 600; margin: 0 0 8px; }
.scroll + h3, .notes + h3 { margin-top: 18px; }
.figures + p, p + .figures { margin-top: 14px; }
p { margin: 0 0 10px; }
.muted, .notes, figcaption, header p { color: var(--muted); }
pre { background: var(--panel); padding: 8px 12px; border-radius: 6px; overflow-x: auto; margin: 8px 0; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 16px; }
/* label, value, part and comparison stand on the same lines in all cards, however long their texts */
.card { background: var(--panel); border-radius: 8px; padding: 12px 14px;
  display: grid; grid-row: span 4; grid-template-rows: subgrid; row-gap: 0; }
.card .label { font-weight: 600; }
.card .value { font-size: 2rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card .muted { font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; }
th, td { text-align: left; padding: 4px 18px 4px 0; white-space: nowrap; vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
thead th:nth-child(n+3), table.classes th:nth-child(n+2), td.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; }
tr.task th { padding-top: 14px; border-bottom: 1px solid var(--line); }
tr.task .muted { font-weight: 400; }
table.plain th { color: var(--muted); font-weight: 500; }
table.plain td { white-space: normal; overflow-wrap: anywhere; }
.notes { font-size: 0.85rem; padding-left: 18px; margin: 10px 0 0; }
.figures { display: grid; gap: 22px 28px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  align-items: start; margin-top: 10px; }
.figures.maps { gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(46%, 220px), 1fr)); }
.single { max-width: 560px; }
.figures.small { gap: 10px 16px; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); margin-top: 16px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.85rem; }
figcaption, h3, li, p { overflow-wrap: anywhere; }
figure.small figcaption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
img { display: block; width: 100%; height: auto; border-radius: 3px; }
img.sheet { max-width: 820px; margin-bottom: 6px; }
.strip { display: grid; grid-template-columns: repeat(var(--cells), minmax(0, 1fr)); gap: 5px; margin-bottom: 8px; }
.strip figcaption { font-size: 0.72rem; text-align: center; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.strip .query img { outline: 2px solid var(--series-1); outline-offset: -1px; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 0.85rem; margin-bottom: 6px; }
.key { display: inline-flex; align-items: center; gap: 4px; }
.key svg { width: 14px; height: 14px; flex: none; }
.runs { list-style: none; padding: 0; margin: 0; }
.runs > li { padding: 6px 0; overflow-wrap: anywhere; }
.runs details { border: 0; margin: 2px 0 0; padding: 0; font-size: 0.85rem; }
.runs summary { font-weight: 400; color: var(--muted); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
table.comparison th, table.comparison td { padding-right: 14px; }
table.comparison th.run { white-space: normal; overflow-wrap: anywhere; min-width: 74px; max-width: 150px; }
table.comparison small { color: var(--muted); font-size: 0.78rem; }
small.below { display: block; line-height: 1.1; font-weight: 400; color: var(--muted); font-size: 0.78rem; }
table.comparison tr > :first-child { position: sticky; left: 0; background: var(--page); }
.mark { margin-right: 3px; }
a { color: inherit; }
.wrap { overflow-wrap: anywhere; }
details { margin-top: 14px; border-top: 1px solid var(--line); padding-top: 10px; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 480px) {
  th, td { padding-right: 10px; }
  table { font-size: 0.86rem; }
  table.comparison { font-size: 0.8rem; }
  table.comparison th, table.comparison td { padding-right: 7px; }
  table.comparison tr > :last-child { padding-right: 0; }
  table.comparison th.run { min-width: 54px; max-width: 90px; }
  table.comparison small { display: block; font-size: 0.7rem; line-height: 1.1; }
  table.comparison .word { display: none; }
  table.comparison td:first-child { white-space: normal; line-height: 1.15; }
}
@media print {
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  figure, .card, .strip, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table.comparison tr > :first-child { position: static; }
  table.comparison td, table.comparison th { padding-top: 2px; padding-bottom: 2px; }
}
""".strip()
