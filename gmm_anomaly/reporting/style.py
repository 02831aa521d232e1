"""Style of the page: light and dark by the reader's setting, one column on a phone, light in print."""

from __future__ import annotations

_LIGHT = """
--page: #ffffff; --text: #1c2430; --soft: #5a6675; --edge: #d9dfe7; --panel: #f6f8fa; --accent: #0b5cad;
--bar: #cfe2f6; --shade: #1c243040; --warn: #fff6e0; --warn-edge: #e0b04c;
--s0: #0b66c3; --s1: #d1600a; --s2: #15803d; --s3: #a21caf; --s4: #0e7490; --s5: #8a5a12; --s6: #c81e1e;
--s7: #64748b;
"""

_DARK = """
--page: #12161c; --text: #e4e9f0; --soft: #9aa7b6; --edge: #303945; --panel: #1a2029; --accent: #7cb8f5;
--bar: #24476b; --shade: #000000c0; --warn: #33290f; --warn-edge: #8c6d22;
--s0: #5fb0ff; --s1: #ff9d57; --s2: #5fd38a; --s3: #e38bf0; --s4: #4fd1e0; --s5: #d9ad6a; --s6: #ff7b7b;
--s7: #a3b1c2;
"""

_COLORS = "".join(f".s{index} {{ --line: var(--s{index}); }}\n" for index in range(8))

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0 auto; padding: 1.2rem clamp(.9rem, 3vw, 2.5rem) 4rem; max-width: 1240px;
  background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Liberation Sans", "DejaVu Sans", sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: .3rem 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.35rem; margin: 2.8rem 0 .6rem; padding-bottom: .3rem; border-bottom: 2px solid var(--edge);
  overflow-wrap: anywhere; }}
h3 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }}
h4 {{ font-size: .95rem; margin: 1.4rem 0 .4rem; color: var(--soft); }}
a {{ color: var(--accent); text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
p {{ margin: .4rem 0; max-width: 75ch; }}
.note, small {{ color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }}
nav {{ margin: .8rem 0 0; }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .3rem 0; padding: 0; }}
nav li {{ overflow-wrap: anywhere; }}
nav ul:not(:only-child) li:first-child {{ font-weight: 600; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .6rem;
  margin: 1rem 0; padding: 0; }}
.facts div {{ background: var(--panel); border: 1px solid var(--edge); border-radius: 8px;
  padding: .5rem .7rem;
  min-width: 0; }}
.facts dt {{ color: var(--soft); font-size: .78rem; overflow-wrap: anywhere; }}
.facts dd {{ margin: .1rem 0 0; font-weight: 600; font-size: .95rem; overflow-wrap: anywhere; }}
.facts .result dd {{ font-size: 1.3rem; font-variant-numeric: tabular-nums; }}
.table {{ margin: .7rem 0 1rem; min-width: 0; }}
.wide {{ overflow-x: auto; background:
  linear-gradient(to right, var(--page) 30%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 30%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .7rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .7rem 100% no-repeat scroll; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .28rem .7rem .28rem 0; border-bottom: 1px solid var(--edge); white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 600; font-size: .8rem; vertical-align: bottom; }}
.name {{ text-align: left; }}
.number {{ text-align: right; padding-left: .5rem; }}
tbody tr:hover {{ background: var(--panel); }}
.settings td {{ white-space: normal; min-width: 7rem; overflow-wrap: break-word; text-align: left; }}
.settings td.name {{ white-space: nowrap; }}
.settings th {{ text-align: left; }}
b.best {{ color: var(--accent); }}
.none {{ color: var(--soft); }}
.same {{ opacity: 0; }}
.bar {{ display: inline-block; position: relative; width: 7.5rem; padding: 0 .35rem; text-align: right;
  isolation: isolate; }}
.bar i {{ position: absolute; z-index: -1; left: 0; top: 0; bottom: 0; background: var(--bar);
  border-radius: 2px; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 1rem;
  margin: .7rem 0; }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1rem;
  align-items: start; }}
.chart, .images {{ margin: 0; border: 1px solid var(--edge); border-radius: 8px; padding: .6rem .7rem;
  min-width: 0; break-inside: avoid; }}
.chart {{ max-width: 560px; }}
figcaption {{ font-size: .86rem; font-weight: 600; overflow-wrap: anywhere; }}
.images {{ margin: .6rem 0; }}
.images figcaption {{ font-weight: 400; margin-bottom: .4rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-size: 10.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }}
svg .label {{ font-size: 11px; }}
.grid {{ stroke: var(--edge); stroke-width: .7; }}
.guide {{ stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 3; }}
.curve {{ fill: none; stroke: var(--line); stroke-width: 1.7;
  stroke-linejoin: round; stroke-linecap: round; }}
g.dashed {{ stroke-dasharray: 5 4; }}
.area {{ fill: var(--line); fill-opacity: .25; stroke: var(--line); stroke-width: 1.3; }}
{_COLORS}
.legend {{ list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem;
  font-size: .82rem; }}
.legend li {{ overflow-wrap: anywhere; min-width: 0; }}
.legend small {{ margin-left: .35rem; white-space: nowrap; }}
.swatch {{ display: inline-block; width: 1.2rem; margin-right: .35rem; vertical-align: .25em;
  border-top: 3px solid var(--line); }}
.swatch.dashed {{ border-top-style: dashed; }}
.swatch.dotted {{ border-top: 2px dotted var(--soft); }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(0, 1fr));
  grid-auto-flow: column; gap: 4px; }}
.panels img {{ width: 100%; height: auto; display: block; border-radius: 3px; }}
pre {{ background: var(--panel); border: 1px solid var(--edge); border-radius: 6px; padding: .6rem .8rem;
  font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }}
details {{ margin: .6rem 0; }}
summary {{ cursor: pointer; color: var(--accent); }}
.missing {{ background: var(--warn); border-left: 4px solid var(--warn-edge); border-radius: 4px;
  padding: .5rem .8rem; margin: .7rem 0; font-size: .9rem; overflow-wrap: anywhere; min-width: 0; }}
footer {{ margin-top: 3rem; color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }}
@media (max-width: 640px) {{
  .panels {{ grid-auto-flow: row; grid-template-columns: 1fr 1fr; }}
  .panels img:first-child {{ grid-column: 1 / -1; }}
  .facts {{ grid-template-columns: 1fr 1fr; }}
  .facts dd {{ font-size: .84rem; }}
  table {{ font-size: .84rem; }}
  th, td {{ padding-right: .35rem; }}
  .number {{ padding-left: .2rem; }}
  .bar {{ width: 5.2rem; }}
}}
@media print {{
  @page {{ margin: 14mm; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  body {{ font-size: 10.5pt; padding: 0; max-width: none; }}
  nav {{ display: none; }}
  .wide {{ overflow: visible; background: none; }}
  details::details-content {{ content-visibility: visible; }}
  summary {{ color: inherit; }}
  details pre {{ font-size: 6.5pt; columns: 3; }}
  main > section + section {{ break-before: page; }}
  table {{ font-size: 8.5pt; }}
  th, td {{ padding-right: .35rem; white-space: normal; }}
  .bar {{ width: 4.5rem; }}
  .settings td.name {{ white-space: normal; }}
  tr, .facts, .missing {{ break-inside: avoid; }}
  h2, h3, h4 {{ break-after: avoid; }}
  .charts {{ grid-template-columns: repeat(3, 1fr); }}
  a {{ color: inherit; }}
}}
"""
