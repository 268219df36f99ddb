"""Policies as text, and the choice among them."""

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tidemill.core import choosing
from tidemill.core.choosing import BLOCKS_MIN, LENGTHS_MS, Choice, block_length, choose
from tidemill.core.metrics import METRICS, metric
from tidemill.core.policies import OFF, TERMS, of_settings, parse, usual
from tidemill.errors import ConfigError
from tidemill.settings import Retrain

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("never", "never", {}),
        ("every:10_000", "every:10000", {"every": 10000}),
        (" drop + every:500 / window:0 ", "every:500+drop/window:0", {"every": 500, "drop": "auto", "window_rows": 0}),
        ("period:24.0", "period:24", {"hours": 24.0}),
        ("drift+drop/cooldown:12/window:9", "drift+drop/window:9/cooldown:12", None),
        ("every:10000000", "every:10000000", {"every": 10_000_000}),
    ],
)
def test_a_policy_is_settings_and_has_one_name(text: str, name: str, settings: dict[str, Any] | None) -> None:
    """However it is written; what it does not name is off, or left as the project has it."""
    policy = parse(text)
    assert policy.name == name
    assert parse(name) == policy
    assert settings is None or policy.settings == {**OFF, **settings}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sometimes", "'sometimes' is no trigger; valid are never, every:N, period:HOURS, drift, drop"),
        ("evry:100", "did you mean 'every'?"),
        ("", "'' is no trigger"),
        ("every", "every:... needs a whole number from 1 on"),
        ("every:0", "every:0 needs a whole number from 1 on"),
        ("every:ten", "every:ten needs a whole number"),
        ("every:99999999999999999999", "every:99999999999999999999 needs a whole number"),
        ("period:nan", "period:nan needs a number from 0.001 on"),
        ("period:0", "period:0 needs a number from 0.001 on"),
        ("period:1e-320", "period:1e-320 needs a number from 0.001 on"),
        ("never+drift", "never stands alone, for it has no trigger; valid are"),
        ("never/window:10", "never stands alone"),
        ("window:10", "'window' is no trigger"),
        ("drift/every:10", "'every' is no option"),
        ("every:10+every:20", "every stands there twice"),
        ("drift:2", "drift takes no number"),
        ("every:10/window:-1", "window:-1 needs a whole number from 0 on"),
    ],
)
def test_a_text_that_is_no_policy_is_told_in_one_line(text: str, reason: str) -> None:
    """With what would be valid."""
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_every_word_is_a_setting() -> None:
    """The table names fields of ``[retrain]``."""
    assert {term.setting for term in TERMS.values()} | set(OFF) <= set(Retrain.__struct_fields__)


def test_a_projects_settings_are_a_policy() -> None:
    """What only suggests does not retrain; a cooldown counts where there are alarms."""

    def name(**given: Any) -> str:
        return of_settings(msgspec.structs.asdict(Retrain(**given))).name

    assert name() == "every:1000"
    assert name(every=0) == "never"
    assert name(every=500, window_rows=2000, drop="auto", cooldown_hours=6.0) == "every:500+drop/window:2000/cooldown:6"
    assert name(every=0, hours=168.0, drift="suggest") == "period:168"


def test_what_is_compared_where_nobody_says() -> None:
    """Never, the project's own, and rarer ones that still come to a retraining or two."""

    def names(labelled: int, **given: Any) -> list[str]:
        own = of_settings(msgspec.structs.asdict(Retrain(**given)))
        return [policy.name for policy in usual(own, labelled)]

    assert names(100_000) == ["never", "every:1000", "every:3000", "every:10000"]
    assert names(7000, window_rows=500) == ["never", "every:1000/window:500", "every:3000/window:500"]
    assert names(7000, every=0) == ["never"]
    assert names(7000, every=0, drift="auto") == ["never", "drift/cooldown:24"]


class Answers:
    """Made-up answers of some policies to the same requests: labels, and by policy predictions that say more or less."""

    def __init__(self, days: int = 60, rows: int = 4000, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.blocks = np.sort(rng.integers(0, days, rows))
        self.blocks[:days] = np.arange(days)
        self.labels = (rng.random(rows) < 0.3).astype(np.float64)

    def told(self, signal: float) -> NDArray[np.float64]:
        """Whoever has a signal of its own has a noise of its own."""
        noise = np.random.default_rng(round(1000 * signal)).normal(size=len(self.labels))
        return np.round(1 / (1 + np.exp(-signal * (self.labels - 0.3) - 0.7 * noise)), 2)

    def choose(self, name: str = "log_loss", trainings: dict[str, int] | None = None, **signals: float) -> Choice:
        predictions = {policy: METRICS[name].at(self.told(signal), 0.5) for policy, signal in signals.items()}
        counts = trainings or {policy: number for number, policy in enumerate(signals, 1)}
        return choose(self.labels, predictions, counts, self.blocks, METRICS[name], 7)


@pytest.mark.parametrize("name", ["log_loss", "auc", "brier", "f1", "average_precision"])
def test_the_better_policy_is_found_by_any_metric(name: str) -> None:
    """Its gain is positive whatever the metric's direction, and so is the whole interval; the same each time."""
    answers = Answers(rows=1000)
    found = answers.choose(name, never=0.3, often=1.5)
    over = found.standings["often"].over_baseline
    assert (found.best, found.chosen, found.baseline) == ("often", "often", "never")
    assert over.low is not None
    assert 0 < over.low < over.gain < (over.high or 0)
    back = found.standings["never"].over_best
    assert (back.gain, back.low, back.high) == pytest.approx((-over.gain, -(over.high or 0), -over.low))
    assert found == answers.choose(name, never=0.3, often=1.5)


def test_of_policies_that_cannot_be_told_apart_the_cheapest_is_chosen() -> None:
    """And the reason says what was found."""
    answers = Answers(rows=2000)
    close = answers.choose(never=0.2, some=1.5, many=1.6, trainings={"never": 1, "some": 5, "many": 50})
    assert (close.best, close.chosen) == ("many", "some")
    assert close.reason == "cannot be told from many, which has the best score, and has the fewest trainings of those"
    same = answers.choose(never=1.5, often=1.6, trainings={"never": 1, "often": 30})
    assert (same.best, same.chosen) == ("often", "never")
    assert same.reason == "no policy can be told from the best: the one with the fewest trainings"
    clear = answers.choose(never=0.2, some=0.8, many=2.0)
    assert (clear.chosen, clear.reason) == ("many", "better than each of the others")
    best = answers.choose(never=0.2, some=1.6, many=1.5, trainings={"never": 1, "some": 5, "many": 50})
    assert best.reason == "the best; many cannot be told from it, with no fewer trainings"
    assert answers.choose(never=1.0).reason == "there is nothing to compare it with"


def test_the_auc_of_all_resamples_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by pairs of blocks, with ties; held against scikit-learn on the rows of the same draws."""
    monkeypatch.setattr(choosing, "RESAMPLES", 60)
    answers = Answers(days=12, rows=300)
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), 60)
    told = {"never": answers.told(0.3), "often": answers.told(1.0)}
    gains = []
    for drawn in draws:
        rows = np.concatenate([np.tile(np.flatnonzero(answers.blocks == block), times) for block, times in enumerate(drawn)])
        gains.append(np.subtract(*(roc_auc_score(answers.labels[rows], told[name][rows]) for name in ("often", "never"))))
    found = choose(answers.labels, told, {"never": 1, "often": 2}, answers.blocks, metric("auc", "binary"), 7)
    over = found.standings["often"].over_baseline
    assert (over.low, over.high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-12)


def test_the_interval_covers_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two policies that are as good, whose answers of one day err together: of 100 worlds about 95 % have zero inside. Over
    single rows, as if they were independent, it is far less.
    """
    monkeypatch.setattr(choosing, "RESAMPLES", 200)
    inside = {"blocks": 0, "rows": 0}
    worlds = 100
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        days, each = 40, 25
        blocks = np.repeat(np.arange(days), each)
        labels = rng.normal(size=days * each)
        told = {name: labels + rng.normal(size=days)[blocks] + rng.normal(size=len(labels)) for name in ("a", "b")}
        for kind, cut in (("blocks", blocks), ("rows", np.arange(len(labels)))):
            found = choose(labels, told, {"a": 1, "b": 1}, cut, METRICS["mse"], seed)
            inside[kind] += not found.standings["b"].over_baseline.told_apart
    assert 0.88 <= inside["blocks"] / worlds <= 0.98
    assert inside["rows"] / worlds < 0.6


def test_a_metric_that_is_nowhere_defined_has_no_interval() -> None:
    """Labels of one class: there is no AUC, and nothing is told apart."""
    labels, told = np.zeros(10), np.linspace(0, 1, 10)
    found = choose(labels, {"a": told, "b": told}, {"a": 1, "b": 2}, np.arange(10), metric("auc", "binary"), 0)
    assert found.standings["b"].over_best.low is None
    assert found.chosen == "a"


@pytest.mark.parametrize(("days", "length"), [(400, 7 * DAY_MS), (100, DAY_MS), (9, DAY_MS // 4), (2, 3_600_000)])
def test_blocks_are_as_long_as_there_are_enough(days: int, length: int) -> None:
    """Thirty at least."""
    times = np.arange(0, days * DAY_MS, 600_000)
    assert block_length(times) == length
    assert len(np.unique(times // length)) >= BLOCKS_MIN
    assert block_length(np.array([5])) == LENGTHS_MS[-1]
