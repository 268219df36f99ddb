"""The frame of a page for people: a single HTML file that asks the network for nothing.

Pictures are Plotly's, its library stands in the page once. What a sender may have chosen (names of features and parameters,
classes, ids) must be escaped wherever it is shown.
"""

import html
from collections.abc import Sequence

NO_NETWORK = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
"""A browser refuses every request of the page; Plotly's drawing of parallel coordinates compiles its shaders' calls."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { text-align: left; padding: .2em .8em .2em 0; }
td { border-top: 1px solid #ddd; vertical-align: top; } td:last-child { overflow-wrap: anywhere; }
.figure { overflow-x: auto; } .missing { color: #777; }
"""
DRAW = """
const config = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: ""};
for (const [i, figure] of JSON.parse(document.getElementById("figures").textContent).entries())
  Plotly.newPlot("figure" + i, figure.data, figure.layout, config);
"""
"""Plotly's own default is a button that uploads the picture's data."""


def library() -> str:
    """The script that draws. Raises ``ModuleNotFoundError`` where plotly is not installed."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def document(title: str, parts: Sequence[str], figures: str, style: str = "") -> str:
    """The page of a body's parts, as HTML. ``figures``: the JSON list of those that the body has places for (``place``)."""
    safe = figures.replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>\n<script>{library()}</script></head>\n"
        f"<body>\n{chr(10).join(parts)}\n"
        f'<script type="application/json" id="figures">{safe}</script>\n<script>{DRAW}</script></body></html>\n'
    )


def place(number: int) -> str:
    """Where the figure of that number is drawn."""
    return f'<div class="figure" id="figure{number}"></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of plain texts; without a head where that is empty."""
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) for tag, row in lines if row]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"
