"""The report: one page, whatever names and trials it is given, that asks the network for nothing."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.bundle_files import MODEL, Card, OutOfFold
from tidemill.bundles import BundleStore
from tidemill.core.encoder import Encoder
from tidemill.core.environment import digest
from tidemill.core.metrics import metric
from tidemill.core.schema import Feature, Schema, Task
from tidemill.learners.base import Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.messages import Conditions, JournalEntry, Trial
from tidemill.report import Winner, render, winner

pytest.importorskip("plotly")

EVIL = "</script><img src=x onerror=alert(1)>"
CLASSES: dict[Task, Any] = {"binary": ("no", EVIL), "multiclass": ("a", EVIL, "c"), "regression": ()}
SEARCH = ["History", "Importance of the parameters (fANOVA)", "Parallel coordinates", "Slices"]


class Page(HTMLParser):
    """What a browser would make of it: elements, what they ask for, text, and the figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.figures: list[dict[str, Any]] = json.loads(next(text for text in self.scripts if text.startswith("[")))
        self.titles = [figure["layout"]["title"]["text"] for figure in self.figures]
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self._inside = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)


def schema(task: Task) -> Schema:
    return Schema((Feature("age", "number"), Feature(EVIL, "category", ("a",))), "y", task, CLASSES[task])


def conditions(task: Task = "binary", name: str = "log_loss", rows: int = 100) -> Conditions:
    return Conditions(name, task, 3, "stratified", False, "s", ("age",), "t", rows, 0)


def trial(
    number: int, score: float | None, parameters: dict[str, Any], under: Conditions | None = None, **more: Any
) -> Trial:
    under = under or conditions()
    facts: dict[str, Any] = {"learner": "lightgbm", "environment": digest(under), "metric": under.metric, **more}
    plain: dict[str, Any] = {"fold_scores": [], "rounds": 10, "seconds": 1.0, "at": number, "conditions": under}
    return Trial(experiment="e", number=number, parameters=parameters, score=score, **plain, **facts)


def trials(count: int, **more: Any) -> list[Trial]:
    """A search of three parameters, the first of which matters; every fifth was pruned."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        point = {
            "learning_rate": float(rng.uniform(0.01, 1)),
            "num_leaves": int(rng.integers(8, 64)),
            EVIL: float(rng.random()),
        }
        score = None if number % 5 == 4 else point["learning_rate"] + float(rng.normal()) / 100
        found.append(trial(number, score, point | {"bagging_freq": 1}, pruned=score is None, **more))
    return found


def predicted(task: Task, rows: int = 2000) -> OutOfFold:
    rng = np.random.default_rng(0)
    if task == "multiclass":
        chances = rng.dirichlet(np.ones(3), rows)
        return OutOfFold(chances.argmax(axis=1).astype(np.float64), chances)
    predictions = rng.random(rows)
    labels = (
        predictions + rng.normal(size=rows) if task == "regression" else (rng.random(rows) < predictions).astype(np.float64)
    )
    return OutOfFold(labels, np.where(rng.random(rows) < 0.05, np.nan, predictions))


def entry(reason: str = "count", **facts: Any) -> JournalEntry:
    told = {"experiment": "e", "metric": "log_loss", "score": 0.25, "version": 3, "bundle": "b" * 64, "rows": 100, **facts}
    return JournalEntry("e", "experiment", reason, "promoted", 5, **told)


@pytest.mark.parametrize(
    ("task", "pictures"),
    [
        ("binary", ["ROC", "Precision and recall", "Calibration"]),
        ("multiclass", ["Confusion matrix"]),
        ("regression", ["Residuals", "Residuals"]),
    ],
)
def test_the_page_has_the_search_and_the_models_errors(task: Task, pictures: list[str]) -> None:
    """In pictures by task; the rows that no fold has scored are left out."""
    page = Page(render(trials(30), entry(), schema(task), predicted(task), np.array([1.0, 3.0])))
    titles = [title.partition(":")[0] for title in page.titles]
    assert titles == [*SEARCH, *pictures, "Importance of the features"]
    assert page.tags.count("div") == len(titles)
    assert page.figures[-1]["data"][0]["y"] == ["&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;", "age"]
    assert "24 complete, 6 pruned" in page.text
    assert "promoted, version 3" in page.text


def test_the_page_asks_for_nothing() -> None:
    """No element names a source, the browser is told to refuse any, and Plotly's upload is off."""
    text = render(trials(30), entry(), schema("binary"), predicted("binary"), np.ones(2))
    page = Page(text)
    assert page.asked == []
    assert set(page.tags) <= {"html", "head", "meta", "title", "style", "script", "body", "h1", "h2", "p", "div"} | {
        *("table", "tr", "td", "th")
    }
    assert "Content-Security-Policy\" content=\"default-src 'none';" in text
    assert "showSendToCloud: false" in text
    assert text.count("plotly.js v") == 1


def test_names_of_others_are_texts() -> None:
    """Of features, parameters, classes, reasons, ids: none becomes an element or ends a script."""
    shown = entry(reason=EVIL, detail=EVIL, parameters={EVIL: EVIL}, statistic={EVIL: 0.5})
    found = [Trial(**{**fields(one), "experiment": EVIL, "learner": EVIL}) for one in trials(10)]
    found.append(trial(99, 0.5, {EVIL: EVIL, "learning_rate": True}, learner=EVIL))
    text = render(found, shown, schema("multiclass"), predicted("multiclass"), np.ones(2), missing=EVIL)
    page = Page(text)
    assert "img" not in page.tags
    assert text.count("</script>") == 3
    assert page.text.count(EVIL) > 5
    figures = next(script for script in page.scripts if script.startswith("["))
    assert "<" not in figures
    assert "<img" not in json.dumps(page.figures)


def fields(one: Trial) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_each_learner_has_its_section() -> None:
    """With its own parameters; trials of 0.1 have no learner's name."""
    page = Page(render([*trials(10), *trials(10, learner="xgboost"), *trials(10, learner="")], None, schema("binary")))
    assert page.titles == SEARCH * 3
    heads = [text for text in page.texts if text.startswith("The search")]
    assert heads == ["The search: lightgbm", "The search: xgboost", "The search: learner not recorded"]


def test_what_is_missing_says_why() -> None:
    """No verdict, no bundle: the search is shown all the same."""
    page = Page(render(trials(10), None, schema("binary"), missing="no bundle 'bbbb' in bundles"))
    assert page.titles == SEARCH
    assert "no out-of-fold predictions: no bundle 'bbbb' in bundles" in page.text
    assert "no importance of the features: no bundle 'bbbb' in bundles" in page.text
    assert "verdict none yet" in page.text
    one_class = OutOfFold(np.zeros(9), np.full(9, 0.5))
    assert (
        "no curves: the scored rows are all of one class" in Page(render(trials(10), None, schema("binary"), one_class)).text
    )


@pytest.mark.parametrize(
    ("found", "titles"),
    [
        ([trial(0, 0.5, {"a": 1})], ["History"]),
        ([trial(0, 0.5, {}), trial(1, 0.4, {})], ["History"]),
        ([trial(0, 0.5, {"a": 1.0}), trial(1, 0.5, {"a": 2.0})], ["History"]),
        ([trial(0, 0.5, {"a": 1}), trial(1, 0.4, {"b": 2})], ["History"]),
        ([trial(0, 0.5, {"a": 1}), trial(1, None, {"a": 2}, error="out of memory")], ["History"]),
        ([trial(0, None, {"a": 1}, error="out of memory")], []),
        ([trial(0, 0.5, {"a": 1}, metric="gini")], []),
        ([trial(0, 0.5, {"a": 1}), trial(1, 0.4, {"a": 2}), trial(2, 0.6, {"a": 3})], SEARCH),
        ([trial(0, 0.5, {"a": True}), trial(1, 0.4, {"a": False})], SEARCH),
        ([trial(0, 0.5, {"a": "x"}), trial(1, 0.4, {"a": 3}), trial(2, 0.3, {"a": 1.5})], SEARCH),
        ([trial(0, 0.5, {"a": 1}), trial(1, 0.4, {"a": 2.5}), trial(2, 0.45, {"a": 7, "b": 1})], SEARCH),
        ([trial(0, 0.5, {"a": 1, "b": 1}), trial(1, 0.4, {"a": 2, "b": 2}), trial(2, 0.6, {"b": 3})], SEARCH),
    ],
)
def test_any_trials_make_a_page(found: list[Trial], titles: list[str]) -> None:
    """One, none with a score, equal scores, parameters of mixed kinds, or that some have not."""
    page = Page(render(found, entry(), schema("binary")))
    assert [title for title in page.titles if title in SEARCH] == titles


def test_trials_of_another_environment_are_not_mixed_in() -> None:
    """An experiment that was resumed with other settings shows the newest, and counts the others."""
    before = [trial(number, 0.1, {"a": number}, conditions(rows=50)) for number in range(3)]
    after = [trial(number, 0.5 + number / 10, {"a": number}) for number in range(3, 6)]
    page = Page(render([*before, *after], entry(), schema("binary")))
    assert "3 trials of another environment are left out" in page.text
    assert list(page.figures[0]["data"][0]["x"]) == [0, 1, 2]


def test_the_curves_are_those_of_scikit_learn() -> None:
    """Area and average precision, with equal predictions among them."""
    rng = np.random.default_rng(1)
    predictions = np.round(rng.random(5000), 2)
    labels = (rng.random(5000) < predictions).astype(np.float64)
    page = Page(render(trials(5), entry(), schema("binary"), OutOfFold(labels, predictions)))
    told = dict(title.split(": ") for title in page.titles if ": " in title)
    assert told["ROC"] == f"area {metric('auc', 'binary').function(labels, predictions):.4f}"
    average = metric("average_precision", "binary").function(labels, predictions)
    assert told["Precision and recall"] == f"average {average:.4f}"


def test_the_confusion_matrix_counts_rows() -> None:
    """Truth by prediction."""
    chances = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [np.nan] * 3])
    told = OutOfFold(np.array([0.0, 1.0, 0.0, 2.0]), chances)
    page = Page(render(trials(5), entry(), schema("multiclass"), told))
    [matrix] = [figure["data"][0] for figure in page.figures if figure["data"][0]["type"] == "heatmap"]
    assert "%{text}" in matrix["texttemplate"]
    assert numbers(matrix["text"]) == [1, 1, 0, 0, 1, 0, 0, 0, 0]


def numbers(packed: Any) -> list[float]:
    """Plotly packs arrays as base64."""
    return list(np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"]))


@pytest.mark.slow
def test_a_thousand_trials_and_a_million_rows_stay_small() -> None:
    """Below 15 MB: curves and clouds are thinned."""
    text = render(trials(1000), entry(), schema("binary"), predicted("binary", 1_000_000), np.ones(2))
    assert len(text.encode()) < 15e6
    assert len(render(trials(5), entry(), schema("regression"), predicted("regression", 1_000_000)).encode()) < 15e6


def a_bundle(store: BundleStore) -> str:
    rng = np.random.default_rng(0)
    asked = Schema((Feature("age", "number"), Feature("work", "category", ("a", "b"))), "paid", "binary", ("no", "yes"))
    matrix = np.column_stack([rng.normal(size=300), rng.integers(0, 2, 300)])
    labels = (matrix[:, 0] > 0.5).astype(np.float64)
    encoder = Encoder.fit(asked, {"age": [1.0], "work": ["a"]})
    samples = Samples(matrix, labels, None, asked.columns, encoder.categorical, "binary", 2)
    model = LightGBM().fit(samples, {}, 5, seed=0, threads=1)
    zeros: dict[str, Any] = dict.fromkeys(("rounds", "seed", "data_version", "rows", "version", "created_at"), 0)
    card = Card(learner="lightgbm", metric="auc", score=0.9, parameters={}, training_set="", experiment="e", **zeros)
    return store.write(model, encoder, card, matrix, out_of_fold=OutOfFold(labels, rng.random(300)))


def test_the_model_is_read_from_the_store(tmp_path: Path) -> None:
    """Its own schema, predictions and importances; where the bundle is gone, or damaged, the reason."""
    store = BundleStore(tmp_path / "bundles", lambda name: LightGBM())
    bundle = a_bundle(store)
    found = winner(store, entry(bundle=bundle))
    assert found.schema is not None
    assert found.out_of_fold is not None
    assert found.importances is not None
    assert found.schema.columns == ("age", "work")
    assert found.importances[0] > found.importances[1] == 0.0
    page = Page(render(trials(5), entry(), found.schema, found.out_of_fold, found.importances, found.missing))
    assert page.titles[-1] == "Importance of the features"
    assert page.figures[-1]["data"][0]["y"] == ["age", "work"]
    (store.root / bundle / MODEL).write_text("tree")
    assert "model.txt" in winner(store, entry(bundle=bundle)).missing
    store.prune([])
    assert "no bundle" in winner(store, entry(bundle=bundle)).missing
    assert winner(store, entry(bundle="")) == Winner(missing="the experiment ended without a model")
    assert winner(store, None) == Winner(missing="the experiment has no verdict yet")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_browser_draws_every_picture(task: Task, tmp_path: Path) -> None:
    """Chromium runs the page: each figure has its drawing, no name has become an image, and nothing was refused."""
    file = tmp_path / "report.html"
    text = render(trials(30), entry(reason=EVIL), schema(task), predicted(task), np.array([1.0, 3.0]))
    file.write_text(text)
    options = ("--headless", "--no-sandbox", "--virtual-time-budget=20000", "--enable-logging=stderr", "--no-first-run")
    apart = (f"--user-data-dir={tmp_path / 'browser'}", "--host-resolver-rules=MAP * ~NOTFOUND")
    by_software = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    done = subprocess.run(
        ["chromium", *options, *apart, *by_software, "--dump-dom", file.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = re.findall(r'id="figure\d+"[^>]*js-plotly-plot|js-plotly-plot"[^>]*id="figure\d+"', done.stdout)
    assert len(drawn) == len(Page(text).figures), done.stderr
    body = done.stdout.partition("<body>")[2].partition("<script")[0]
    assert body.count('class="main-svg"') >= len(drawn)
    assert "<img" not in body
    assert "WebGL is not supported" not in body
    assert set(re.findall('data-title="([^"]*)"', body)) <= {
        *("Download plot as a PNG", "Zoom", "Pan", "Box Select", "Lasso Select", "Zoom in", "Zoom out", "Autoscale"),
        "Reset axes",
    }
    assert not re.search("Refused to|violates the following Content Security|Uncaught", done.stderr), done.stderr
