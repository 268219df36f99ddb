"""One experiment as a page for people: a single HTML file that asks the network for nothing.

Pictures are Plotly's, its library stands in the page once. What a sender may have chosen (names of features and parameters,
classes, ids) is escaped wherever it is shown.
"""

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill import pages
from tidemill.core.metrics import METRICS
from tidemill.core.schema import Schema
from tidemill.errors import BundleRefused, UnknownModel
from tidemill.imports import hidden
from tidemill.messages import JournalEntry, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from plotly.graph_objects import Figure

    from tidemill.bundle_files import OutOfFold
    from tidemill.bundles import BundleStore

Values = NDArray[np.float64]

CURVE_POINTS = 1000
DRAWN_ROWS = 5000
"""Rows that a scatter shows: evenly taken."""
BINS = 10
"""Of a calibration, of equally many rows each."""
TOP = 10
"""Trials of the table."""
BARS = 30
"""Features of a picture."""
HEIGHT = 450
"""Of a picture, in pixels, unless it needs another."""
FOREST = {"n_trees": 16, "max_depth": 8}
"""Of the parameters' importance (fANOVA). Measured on 1,000 trials of 9 parameters: 1.7 s; it is 62 s with Optuna's 64 trees
of depth 64, and no importance differs by more than 0.01.
"""


class Winner(NamedTuple):
    """What is known of an experiment's model; ``missing`` says why nothing more is."""

    schema: Schema | None = None
    out_of_fold: "OutOfFold | None" = None
    importances: Values | None = None
    missing: str = ""


def winner(store: "BundleStore", entry: JournalEntry | None) -> Winner:
    """From the store; a bundle that is gone or damaged is told, not raised."""
    if entry is None:
        return Winner(missing="the experiment has no verdict yet")
    if not entry.bundle:
        return Winner(missing="the experiment ended without a model")
    try:
        learner = store.learner(store.manifest(entry.bundle).learner)
        importances = learner.importances(store.model_bytes(entry.bundle))
        return Winner(store.schema(entry.bundle), store.out_of_fold(entry.bundle), importances)
    except (UnknownModel, BundleRefused) as error:
        return Winner(missing=str(error))


def page(store: "BundleStore", trials: Sequence[Trial], entry: JournalEntry | None, schema: Schema) -> str:
    """The page of an experiment with what the store has of its model; ``schema`` is the project's."""
    won = winner(store, entry)
    return render(trials, entry, won.schema or schema, won.out_of_fold, won.importances, won.missing)


def render(
    trials: Sequence[Trial],
    entry: JournalEntry | None,
    schema: Schema,
    out_of_fold: "OutOfFold | None" = None,
    importances: Values | None = None,
    missing: str = "",
) -> str:
    """The page of one experiment's ``trials`` (one at least). ``schema`` is the model's own; ``missing`` says why there are
    no ``out_of_fold`` predictions or ``importances``, where there are none.
    """
    pages.library()  # that it is missing is said before anything is drawn
    page = _Page()
    title = f"Experiment {trials[0].experiment}"
    page.heading(1, title)
    page.table([], list(_facts(trials, entry)))
    for learner in dict.fromkeys(trial.learner for trial in trials):
        _search(page, learner, [trial for trial in trials if trial.learner == learner])
    page.heading(2, "The model")
    if out_of_fold is None:
        page.missing("no out-of-fold predictions", missing or "they were not kept")
    else:
        page.text("Every row is predicted by a model that has not learnt from it.")
        _predictions(page, schema, *_scored(out_of_fold))
    if importances is None:
        page.missing("no importance of the features", missing or "the learner gives none")
    else:
        shares = importances / (importances.sum() or 1.0)
        page.figure("Importance of the features", _bars([html.escape(name) for name in schema.columns], shares))
    return page.html(title)


class _Page:
    """The body's HTML so far, and the figures that it has places for."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._figures: list[str] = []

    def heading(self, level: int, text: str) -> None:
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def missing(self, what: str, why: str) -> None:
        self._parts.append(f'<p class="missing">{html.escape(f"{what}: {why}")}</p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._parts.append(pages.table(head, [[_shown(value) for value in row] for row in rows]))

    def figure(self, title: str, figure: "Figure") -> None:
        """Its labels must be escaped."""
        height = figure.layout.height or HEIGHT
        figure.update_layout(title=title, template="plotly_white", height=height)
        self._parts.append(pages.place(len(self._figures)))
        self._figures.append(figure.to_json())

    def html(self, title: str) -> str:
        return pages.document(title, self._parts, f"[{','.join(self._figures)}]")


def _facts(trials: Sequence[Trial], entry: JournalEntry | None) -> Iterator[tuple[str, Any]]:
    states = [trial.state for trial in trials]
    yield "trials", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield "seconds in trials", sum(trial.seconds for trial in trials)
    if entry is None:
        yield "verdict", "none yet"
        return
    yield "verdict", f"{entry.verdict}{f', version {entry.version}' if entry.version else ''}"
    yield "reason", entry.reason
    if entry.detail:
        yield "detail", entry.detail
    yield "training rows", entry.rows
    if entry.score is not None:
        yield f"{entry.metric} by cross-validation", entry.score
        yield "learner", entry.learner or "not recorded"
        yield "rounds", entry.rounds
        yield "parameters", entry.parameters
    yield from ((f"against the champion: {name.replace('_', ' ')}", value) for name, value in entry.statistic.items())
    if entry.bundle:
        yield "bundle", entry.bundle


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _search(page: _Page, learner: str, trials: Sequence[Trial]) -> None:
    """A learner's trials; where the experiment was resumed under other conditions, those of the newest ones."""
    newest = [trial for trial in trials if (trial.environment, trial.metric) == (trials[-1].environment, trials[-1].metric)]
    name = newest[0].metric
    page.heading(2, f"The search: {learner or 'learner not recorded'}")
    if len(newest) < len(trials):
        page.text(f"{len(trials) - len(newest)} trials of another environment are left out.")
    if name not in METRICS:
        return page.missing("no pictures", f"the metric {name} is not known")
    measure = METRICS[name]
    whole = sorted(
        (trial for trial in newest if trial.score is not None), key=lambda trial: measure.loss(trial.score or 0.0)
    )
    if not whole:
        return page.missing("no pictures", "no trial has a score")
    page.table(
        ("number", name, "rounds", "seconds", "parameters"),
        [(trial.number, trial.score, trial.rounds, trial.seconds, trial.parameters) for trial in whole[:TOP]],
    )
    study = _study(newest, measure.greater_is_better)
    for title, figure in _pictures(study, name):
        if figure is None:
            page.missing(title, "too few trials have a score, or no parameter differs among them")
        else:
            page.figure(title, figure)


def _study(trials: Sequence[Trial], maximise: bool) -> "Study":
    """Optuna's view of them; parameters that all share are nothing to look at."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    columns = {name: [trial.parameters[name] for trial in trials if name in trial.parameters] for name in names}
    seen = {name: _distribution(values) for name, values in columns.items() if len({repr(value) for value in values}) > 1}
    study = optuna.create_study(direction="maximize" if maximise else "minimize")
    states = optuna.trial.TrialState
    ended = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    for trial in trials:
        point = {name: _plain(trial.parameters[name], seen[name]) for name in trial.parameters if name in seen}
        study.add_trial(
            optuna.trial.create_trial(
                state=ended[trial.state],
                value=trial.score,
                params={html.escape(name): value for name, value in point.items()},
                distributions={html.escape(name): seen[name] for name in point},
            )
        )
    return study


def _distribution(values: Sequence[Any]) -> "BaseDistribution":
    """The range that they cover, on a logarithmic scale where it is wide and most are at its lower end."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return CategoricalDistribution(sorted({html.escape(str(value)) for value in values}))
    low, high = min(values), max(values)
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(low, high, log=low > 0 and high > 20 * low and 4 * np.median(values) < low + high)


def _plain(value: Any, distribution: "BaseDistribution") -> Any:
    return value if hasattr(distribution, "low") else html.escape(str(value))


def _pictures(study: "Study", metric: str) -> Iterator[tuple[str, "Figure | None"]]:
    """Of the search; None where there is nothing to draw."""
    with hidden("matplotlib", "pandas"):  # Optuna and scikit-learn would import them, to no use here
        from optuna import visualization

    trials = study.get_trials(deepcopy=False)
    drawn = len({trial.value for trial in trials} - {None}) > 1 and any(trial.params for trial in trials)
    yield "History", visualization.plot_optimization_history(study, target_name=metric)
    yield "Importance of the parameters (fANOVA)", _parameters_importance(study) if drawn else None
    yield "Parallel coordinates", visualization.plot_parallel_coordinate(study, target_name=metric) if drawn else None
    yield "Slices", visualization.plot_slice(study, target_name=metric) if drawn else None


def _parameters_importance(study: "Study") -> "Figure | None":
    """Drawn here: Optuna's own picture copies all trials once a parameter."""
    with hidden("matplotlib", "pandas"):
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0, **FOREST))
    return _bars(list(found), np.array([*found.values()])) if found else None


def _scored(out_of_fold: "OutOfFold") -> tuple[Values, Values]:
    """Labels and predictions of the rows that a fold has scored."""
    found = np.isfinite(out_of_fold.predictions)
    rows = found.all(axis=1) if found.ndim == 2 else found
    return out_of_fold.labels[rows], out_of_fold.predictions[rows]


def _predictions(page: _Page, schema: Schema, labels: Values, predictions: Values) -> None:
    if schema.task == "regression" and len(labels):
        page.figure("Residuals", _residuals(labels, predictions))
        page.figure("Residuals: how often", _residual_histogram(labels, predictions))
    elif schema.task == "multiclass" and len(labels):
        page.figure("Confusion matrix", _confusion(schema, labels, predictions))
    elif len(np.unique(labels)) < 2:
        page.missing("no curves", "the scored rows are all of one class, or there are none")
    else:
        page.figure(*_roc(labels, predictions))
        page.figure(*_precision_recall(labels, predictions))
        page.figure(
            "Calibration: what share of the rows with a probability is of the class", _calibration(labels, predictions)
        )


def _steps(labels: Values, predictions: Values) -> tuple[Values, Values]:
    """How many rows of the second class, and of the first, have at least each probability, from the highest on."""
    order = np.argsort(-predictions, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(predictions[order])), len(labels) - 1)
    positives = np.cumsum(labels[order] > 0.5)[ends].astype(np.float64)
    return positives, ends + 1 - positives


def _roc(labels: Values, predictions: Values) -> tuple[str, "Figure"]:
    positives, negatives = (np.append(0.0, steps) for steps in _steps(labels, predictions))
    right, wrong = positives / positives[-1], negatives / negatives[-1]
    figure = _curve(wrong, right, "share of the first class taken", "share of the second class found")
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#999"})
    return f"ROC: area {np.trapezoid(right, wrong):.4f}", figure


def _precision_recall(labels: Values, predictions: Values) -> tuple[str, "Figure"]:
    positives, negatives = _steps(labels, predictions)
    recall, precision = positives / positives[-1], positives / (positives + negatives)
    average = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return f"Precision and recall: average {average:.4f}", _curve(recall, precision, "recall", "precision")


def _curve(x: Values, y: Values, across: str, up: str) -> "Figure":
    from plotly.graph_objects import Figure

    taken = _evenly(len(x), CURVE_POINTS)
    figure = Figure(layout={"showlegend": False, "xaxis_title": across, "yaxis_title": up, "width": 560, "height": 500})
    figure.add_scatter(x=x[taken], y=y[taken], mode="lines")
    return figure


def _calibration(labels: Values, predictions: Values) -> "Figure":
    bins = [rows for rows in np.array_split(np.argsort(predictions, kind="stable"), BINS) if len(rows)]
    expected = np.array([predictions[rows].mean() for rows in bins])
    seen = np.array([labels[rows].mean() for rows in bins])
    figure = _curve(expected, seen, "mean probability", "share of the second class")
    figure.update_traces(mode="lines+markers")
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#999"})
    return figure


def _residuals(labels: Values, predictions: Values) -> "Figure":
    from plotly.graph_objects import Figure

    rows = _evenly(len(labels), DRAWN_ROWS)
    figure = Figure(layout={"xaxis_title": "prediction", "yaxis_title": "truth - prediction"})
    figure.add_scattergl(
        x=predictions[rows], y=(labels - predictions)[rows], mode="markers", marker={"size": 4, "opacity": 0.4}
    )
    return figure


def _residual_histogram(labels: Values, predictions: Values) -> "Figure":
    from plotly.graph_objects import Figure

    counts, edges = np.histogram(labels - predictions, bins=50)
    figure = Figure(layout={"xaxis_title": "truth - prediction", "yaxis_title": "rows", "bargap": 0})
    figure.add_bar(x=(edges[1:] + edges[:-1]) / 2, y=counts)
    return figure


def _confusion(schema: Schema, labels: Values, predictions: Values) -> "Figure":
    from plotly.graph_objects import Figure

    names = [html.escape(str(label)) for label in schema.classes]
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (labels.astype(np.intp), predictions.argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(layout={"xaxis_title": "predicted", "yaxis_title": "truth", "yaxis_autorange": "reversed"})
    figure.update_layout(xaxis_type="category", yaxis_type="category", height=max(400, 22 * len(names)))
    figure.add_heatmap(x=names, y=names, z=share, zmin=0, zmax=1, colorscale="Blues")
    figure.update_traces(text=counts.astype(int), hovertemplate="%{y} predicted as %{x}: %{text} rows, %{z:.1%}")
    if len(names) <= BARS:
        figure.update_traces(texttemplate="%{text}")
    return figure


def _bars(columns: Sequence[str], importances: Values) -> "Figure":
    """The most important first; ``columns`` are escaped."""
    from plotly.graph_objects import Figure

    top = np.argsort(-importances, kind="stable")[:BARS]
    figure = Figure(layout={"yaxis_autorange": "reversed", "yaxis_type": "category", "xaxis_title": "share"})
    figure.update_layout(height=200 + 24 * len(top), yaxis_dtick=1)
    figure.add_bar(x=importances[top], y=[columns[number] for number in top], orientation="h")
    return figure


def _evenly(count: int, most: int) -> NDArray[np.intp]:
    """Up to ``most`` of so many row numbers, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))
