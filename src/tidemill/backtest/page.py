"""A backtest as a page: one HTML file that asks the network for nothing. Figures are Plotly's, given as plain values."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tidemill.backtest.result import PolicyResult, Result, Training
from tidemill.backtest.text import conclusion, facts, moment, shown, table
from tidemill.report import DRAW, NO_NETWORK, STYLE

COLORS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac", "#eeca3b")
HEIGHT = 480
Figure = dict[str, Any]


def library() -> str:
    """The script that draws. Raises ``ModuleNotFoundError`` where plotly is not installed."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def page(result: Result) -> str:
    """The page."""
    title = f"Backtest of {result.project}"
    figures = [_over_time(result), *([_gains(result)] if len(result.policies) > 1 else []), _cost(result)]
    drawn = msgspec.json.encode(figures).decode().replace("<", "\\u003c")
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _table([], [list(fact) for fact in facts(result)]),
        *(f"<p>{html.escape(line)}</p>" for line in conclusion(result)),
        _table(table(result)[0], table(result)[1:]),
        *(f'<div class="figure" id="figure{number}"></div>' for number in range(len(figures))),
        "<h2>Trainings</h2>",
        _table(
            ["policy", "time (UTC)", "experiment", "reason", "verdict", "version", "rows", "seconds"], _trainings(result)
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n<script>{library()}</script></head>\n"
        f"<body>\n{chr(10).join(body)}\n"
        f'<script type="application/json" id="figures">{drawn}</script>\n<script>{DRAW}</script></body></html>\n'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) for tag, row in lines if row]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _trainings(result: Result) -> list[list[str]]:
    return [
        [
            *(one.policy, moment(made.at), made.experiment, made.reason, made.verdict),
            *(str(made.version or ""), f"{made.rows:,}", f"{made.seconds:.1f}"),
        ]
        for one in result.policies
        for made in one.trainings
    ]


def _figure(title: str, data: list[Figure], across: str, up: str, **layout: Any) -> Figure:
    plain = {"title": {"text": title}, "height": HEIGHT, "plot_bgcolor": "#fff", "hovermode": "closest", **layout}
    axes = {"gridcolor": "#eee", "linecolor": "#999", "automargin": True}
    return {
        "data": data,
        "layout": {**plain, "xaxis": {"title": {"text": across}, **axes}, "yaxis": {"title": {"text": up}, **axes}},
    }


def _over_time(result: Result) -> Figure:
    """A line a policy, with a mark where a new version began to serve."""
    data = [trace for number, one in enumerate(result.policies) for trace in _line(result, one, _color(number))]
    return _figure(
        "Quality over time; marks: a new version serves from here on", data, "time of the request (UTC)", result.metric
    )


def _line(result: Result, one: PolicyResult, color: str) -> Iterator[Figure]:
    name = html.escape(one.policy)
    shared = {"legendgroup": name, "type": "scatter"}
    times = [moment(start) for start in result.windows]
    counts = [f"{count:,} answers" for count in result.rows]
    hover = "%{x}<br>%{y:.4f}<br>%{text}"
    yield {
        **shared,
        "name": name,
        "x": times,
        "y": one.scores,
        "text": counts,
        "mode": "lines",
        "line": {"color": color},
        "hovertemplate": hover,
    }
    made = [training for training in one.trainings[1:] if training.verdict == "promoted"]
    yield {
        **shared,
        "name": f"{name}: new version",
        "showlegend": False,
        "x": [moment(training.at + round(1000 * result.ready_after_seconds)) for training in made],
        "y": [_score_at(result, one, training) for training in made],
        "text": [
            html.escape(f"version {training.version}: {training.experiment}, {training.rows:,} rows") for training in made
        ],
        "mode": "markers",
        "marker": {"color": color, "symbol": "line-ns-open", "size": 16, "line": {"width": 3}},
        "hovertemplate": "%{x}<br>%{text}",
    }


def _score_at(result: Result, one: PolicyResult, training: Training) -> float | None:
    """The height at which the mark stands: that of its window."""
    before = [number for number, start in enumerate(result.windows) if start <= training.at]
    return one.scores[before[-1] if before else 0]


def _gains(result: Result) -> Figure:
    """Bars with the intervals."""
    others = [(number, one) for number, one in enumerate(result.policies) if one.policy != result.baseline]
    gains = [one.gain_over_baseline for _, one in others]
    bars: Figure = {
        "type": "bar",
        "x": [html.escape(one.policy) for _, one in others],
        "y": [gain.gain for gain in gains],
        "text": [shown(gain) for gain in gains],
        "textposition": "none",
        "marker": {"color": [_color(number) for number, _ in others]},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [None if gain.high is None else gain.high - gain.gain for gain in gains],
            "arrayminus": [None if gain.low is None else gain.gain - gain.low for gain in gains],
        },
        "hovertemplate": "%{x}<br>%{text}",
    }
    title = f"Better than {html.escape(result.baseline)} by ({result.metric}, {result.confidence:.0%} intervals)"
    return _figure(title, [bars], "policy", result.metric, showlegend=False)


def _cost(result: Result) -> Figure:
    """What a policy gives for its seconds."""
    points: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(one.policy),
            "x": [one.training_seconds],
            "y": [one.score],
            "text": [f"{len(one.trainings)} trainings"],
            "marker": {"color": _color(number), "size": 12, "symbol": "star" if one.policy == result.chosen else "circle"},
            "hovertemplate": "%{y:.4f}<br>%{x:.0f} s<br>%{text}",
        }
        for number, one in enumerate(result.policies)
    ]
    return _figure("Quality and cost; the star is chosen", points, "the trainer's seconds", result.metric)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]
