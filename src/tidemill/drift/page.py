"""A comparison as a page: one HTML file that asks the network for nothing. Names and texts of the tables are escaped."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tidemill import pages
from tidemill.drift.compare import ColumnShift, Comparison
from tidemill.drift.text import conclusion, facts, table

HEIGHT = 320
PICTURES = 100
"""Of a wide table the columns with the largest distance are drawn; all are in the table."""
UNBROKEN = "td:not(:last-child) { white-space: nowrap; }"
COLORS = ("#4c78a8", "#f58518")
Figure = dict[str, Any]


def page(found: Comparison) -> str:
    """The figures as a table, then both distributions of each column side by side, the largest distance first."""
    drawn = found.columns[:PICTURES]
    title = f"Drift from {found.a.name} to {found.b.name}"
    parts = [f"<h1>{html.escape(title)}</h1>", *_body(found, drawn)]
    figures = msgspec.json.encode([_figure(column) for column in drawn]).decode()
    return pages.document(title, parts, figures, UNBROKEN)


def _body(found: Comparison, drawn: Sequence[ColumnShift]) -> Iterator[str]:
    head, *rows = table(found)
    yield pages.table([], facts(found))
    yield pages.table(head, rows)
    yield from (f"<p>{html.escape(line)}</p>" for line in conclusion(found))
    yield from (f'<p class="missing">{html.escape(note)}</p>' for note in found.notes)
    yield "<h2>Distributions</h2>"
    if len(drawn) < len(found.columns):
        yield f'<p class="missing">the {len(drawn)} columns with the largest distance, of {len(found.columns)}</p>'
    for number, (column, row) in enumerate(zip(drawn, rows, strict=False)):
        yield f"<h3>{html.escape(row[0])}{': shifted' if column.shifted else ''}</h3>"
        told = [f"{name} {cell}" for name, cell in zip(head[2:], row[2:], strict=True) if cell]
        yield f"<p>{html.escape(', '.join(told))}<br>{html.escape(column.most)}</p>"
        yield pages.place(number)


def _figure(column: ColumnShift) -> Figure:
    """Bars of A and B in each bin that has any."""
    rows = zip(column.bins.labels, column.bins.a, column.bins.b, strict=True)
    kept = [(label, a, b) for label, a, b in rows if a or b]
    places = list(range(len(kept)))  # two bins may have one label: a category may be called (missing)
    labels = [html.escape(label if len(label) <= 40 else f"{label[:39]}…") for label, _, _ in kept]
    sides = [("A", [a for _, a, _ in kept]), ("B", [b for _, _, b in kept])]
    data = [
        {
            "type": "bar",
            "name": name,
            "x": places,
            "y": values,
            "text": labels,
            "textposition": "none",
            "marker": {"color": color},
            "hovertemplate": f"{name}: %{{y:.2%}}<br>%{{text}}<extra></extra>",
        }
        for (name, values), color in zip(sides, COLORS, strict=True)
    ]
    lines = {"gridcolor": "#eee", "linecolor": "#999", "automargin": True}
    return {
        "data": data,
        "layout": {
            "height": HEIGHT,
            "plot_bgcolor": "#fff",
            "margin": {"t": 20},
            "xaxis": {"tickvals": places, "ticktext": labels, **lines},
            "yaxis": {"tickformat": ".0%", "title": {"text": "share of the rows"}, **lines},
        },
    }
