"""A backtest as a page: one HTML file that asks the network for nothing. Figures are Plotly's, given as plain values."""

import html
from collections.abc import Iterator
from typing import Any

import msgspec

from tidemill import pages
from tidemill.backtest.result import PolicyResult, Result, Training
from tidemill.backtest.text import conclusion, facts, shown, table
from tidemill.texts import moment

COLORS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac", "#eeca3b")
HEIGHT = 480
Figure = dict[str, Any]


def page(result: Result) -> str:
    """The page."""
    title = f"Backtest of {result.project}"
    figures = [_over_time(result), *([_gains(result)] if len(result.policies) > 1 else []), _cost(result)]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        pages.table([], facts(result)),
        *(f"<p>{html.escape(line)}</p>" for line in conclusion(result)),
        pages.table(table(result)[0], table(result)[1:]),
        *map(pages.place, range(len(figures))),
        "<h2>Trainings</h2>",
        pages.table(
            ["policy", "time (UTC)", "experiment", "reason", "verdict", "version", "rows", "seconds"], _trainings(result)
        ),
    ]
    return pages.document(title, body, msgspec.json.encode(figures).decode())


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
