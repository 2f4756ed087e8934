"""Sections as one HTML page that runs nothing, loads nothing and escapes all that it shows."""

import html
import re
from collections.abc import Callable, Sequence
from functools import singledispatch

from .page import LONGEST, Bars, Block, Code, Histogram, Section, Stack, Table, Text, Tiles, lines_visible, visible

_COLORS = 8  # how many the style sheet names
_LONG_WORD = re.compile(r"\S{25}")

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#dfe3e8;--paper:#fff;--card:#f5f7f9;--accent:#2f6fb0;
--c0:#2f6fb0;--c1:#d9822b;--c2:#3d9970;--c3:#b3478f;--c4:#8a7a2f;--c5:#6157b8;--c6:#c0504d;--c7:#7d8894}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#9aa5b3;--line:#333c47;--paper:#14181d;--card:#1d2329;
--accent:#6cabe8;--c0:#6cabe8;--c1:#f0a75c;--c2:#69c79b;--c3:#dd83bf;--c4:#cdbb62;--c5:#9d95ea;--c6:#ea8785;--c7:#96a1ad}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.1rem 4rem;max-width:54rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 1.2rem}
h2{font-size:1.15rem;margin:2.6rem 0 .8rem;padding-top:1rem;border-top:1px solid var(--line)}
p{margin:.6rem 0;max-width:44rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.7rem;margin:0}
.tiles div{background:var(--card);border-radius:.6rem;padding:.7rem .9rem}
.tiles dt{color:var(--soft);font-size:.85rem}
.tiles dd{margin:0;font-size:1.25rem;font-weight:600;line-height:1.3}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:normal}
.long{overflow-wrap:anywhere;min-width:9rem}
th{color:var(--soft);font-weight:500}
td{white-space:pre-wrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
figure{margin:1.1rem 0}
figcaption{color:var(--soft);font-size:.9rem;margin-bottom:.4rem}
svg{display:block;width:100%}
.stack svg{height:1.5rem;border-radius:.4rem}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;list-style:none;padding:0;margin:.5rem 0;font-size:.9rem}
.key i{display:inline-block;width:.75rem;height:.75rem;border-radius:.2rem;margin-right:.4rem}
.bars{display:grid;grid-template-columns:minmax(5rem,max-content) 1fr max-content;gap:.35rem .8rem;align-items:center;
font-size:.9rem}
.bars span:nth-child(3n){text-align:right;font-variant-numeric:tabular-nums}
.bars svg{height:.9rem;border-radius:.2rem;background:var(--card)}
.bars span:nth-child(3n+1){max-width:16rem}
.hist{max-width:40rem}
.hist text{fill:var(--soft);font-size:9px;text-anchor:middle}
pre{background:var(--card);border-radius:.6rem;padding:.8rem 1rem;overflow-x:auto;margin:.4rem 0;white-space:pre-wrap;
font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
""" + "".join(f".c{i}{{fill:var(--c{i});background:var(--c{i})}}" for i in range(_COLORS))


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page around a body. Nothing in it runs or is loaded, which its policy also says."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The sections as one page."""
    parts = [f"<h1>{esc(title)}</h1>"]
    for section in sections:
        heading = [f"<h2>{esc(section.title)}</h2>"] if section.title else []
        parts += ["<section>", *heading, *map(_html, section.blocks), "</section>"]
    return page(title, "\n".join(parts))


def esc(text: str, limit: int | None = None) -> str:
    """Text for HTML, in an element or an attribute."""
    return html.escape(visible(text, limit))


@singledispatch
def _html(block: Block) -> str:
    raise AssertionError(block)


@_html.register
def _(block: Text) -> str:
    return f"<p>{esc(block.text, LONGEST * 4)}</p>"


@_html.register
def _(block: Tiles) -> str:
    tiles = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in block.items)
    return f'<dl class="tiles">{tiles}</dl>'


@_html.register
def _(block: Table) -> str:
    numeric = [block.numeric(i) for i in range(len(block.head) or 2)]

    def row(cells: Sequence[str], tag: Callable[[int], str]) -> str:
        kinds = [' class="n"' if n else ' class="long"' if _LONG_WORD.search(cell) else ""
                 for n, cell in zip(numeric, cells, strict=True)]  # fmt: skip
        filled = (f"<{tag(i)}{kinds[i]}>{esc(cell, LONGEST)}</{tag(i)}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(filled)}</tr>"

    head = f"<thead>{row(block.head, lambda _: 'th')}</thead>" if block.head else ""
    rows = "".join(row(cells, lambda i: "td" if i or block.head else "th") for cells in block.rows)
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'


def _figure(kind: str, name: str, content: str) -> str:
    return f'<figure class="{kind}"><figcaption>{esc(name)}</figcaption>{content}</figure>'


def _svg(box: str, name: str, content: str, stretch: bool = True) -> str:
    how = ' preserveAspectRatio="none"' if stretch else ""
    return f'<svg viewBox="0 0 {box}"{how} role="img" aria-label="{esc(name)}">{content}</svg>'


@_html.register
def _(block: Stack) -> str:
    total, at = sum(value for _, value, _ in block.items) or 1, 0.0
    rects, keys = [], []
    for i, (name, value, shown) in enumerate(block.items):
        width, color = 100 * value / total, f"c{i % _COLORS}"
        tip = f"<title>{esc(name, LONGEST)}: {esc(shown)}</title>"
        rects.append(f'<rect class="{color}" x="{at:.3f}" width="{width:.3f}" height="10">{tip}</rect>')
        keys.append(f'<li><i class="{color}"></i>{esc(name, LONGEST)} <b>{esc(shown)}</b></li>')
        at += width
    bar = _svg("100 10", block.name, "".join(rects))
    return _figure("stack", block.name, f'{bar}<ul class="key">{"".join(keys)}</ul>')


@_html.register
def _(block: Bars) -> str:
    most = max((value for _, value, _ in block.items), default=0) or 1
    cells = []
    for name, value, shown in block.items:
        rect = f'<rect class="c0" width="{100 * value / most:.3f}" height="10"/>'
        cells.append(f"<span>{esc(name, 80)}</span>{_svg('100 10', shown, rect)}<span>{esc(shown)}</span>")
    return _figure("", block.name, f'<div class="bars">{"".join(cells)}</div>')


@_html.register
def _(block: Histogram) -> str:
    most = max((count for _, count in block.items), default=0) or 1
    step, parts = 480 / max(1, len(block.items)), []
    for i, (edge, count) in enumerate(block.items):
        height = 110 * count / most
        x = f'x="{i * step + 1:.2f}" width="{step - 2:.2f}"'
        parts.append(f'<rect class="c0" {x} y="{124 - height:.2f}" height="{height:.2f}" rx="2"/>')
        middle = f'x="{(i + 0.5) * step:.2f}"'
        parts.append(f'<text {middle} y="138">{esc(edge)}</text>')
        if count:
            parts.append(f'<text {middle} y="{120 - height:.2f}">{count:,}</text>')
    return _figure("hist", block.name, _svg("480 142", block.name, "".join(parts), stretch=False))


@_html.register
def _(block: Code) -> str:
    return _figure("", block.caption, f"<pre>{html.escape(lines_visible(block.text))}</pre>")
