"""The leaderboard: only what can be compared is ranked together, and who is left out is told why."""

import csv
import io
import json
from typing import Any

import pytest

from tidemill.core.environment import digest
from tidemill.core.leaderboard import COLUMNS, leaderboard, named, render, to_csv, to_json
from tidemill.errors import ConfigError
from tidemill.messages import Conditions, Trial

BASE = Conditions("log_loss", "binary", 3, "stratified", False, "schema", ("age",), "rows-1", 1000, 0)


def conditions(**changes: Any) -> Conditions:
    return Conditions(**{name: changes.get(name, getattr(BASE, name)) for name in BASE.__struct_fields__})


def trial(experiment: str, number: int, score: float | None, under: Conditions | None = BASE, **more: Any) -> Trial:
    environment = digest(under) if under else "environment of 0.1"
    facts: dict[str, Any] = {
        "parameters": {"num_leaves": number},
        "metric": under.metric if under else "log_loss",
        "fold_scores": [],
        "rounds": 10,
        "seconds": 1.25,
        "environment": environment,
        "at": number,
        "learner": "lightgbm" if under else "",
        "conditions": under,
        **more,
    }
    return Trial(experiment=experiment, number=number, score=score, **facts)


def places(rows: Any) -> list[tuple[int | None, str, int]]:
    return [(row.rank, row.experiment, row.number) for row in rows]


def test_trials_of_one_environment_are_ranked_together_whatever_their_experiment_and_learner() -> None:
    """The lower log loss first, of equals the one that was recorded first."""
    trials = [trial("a", 0, 0.5), trial("a", 1, 0.3, learner="xgboost"), trial("b", 0, 0.4), trial("b", 1, 0.3)]
    found = leaderboard(trials)
    [board] = found.boards
    assert places(board.rows) == [(1, "a", 1), (2, "b", 1), (3, "b", 0), (4, "a", 0)]
    assert [row.learner for row in board.rows] == ["xgboost", "lightgbm", "lightgbm", "lightgbm"]
    assert (board.metric, board.experiments, found.left_out) == ("log_loss", ["a", "b"], [])


def test_a_metric_ranks_in_its_own_direction() -> None:
    """Of AUC the highest is the first."""
    auc = conditions(metric="auc")
    [board] = leaderboard([trial("a", 0, 0.7, auc), trial("a", 1, 0.9, auc)]).boards
    assert [row.score for row in board.rows] == [0.9, 0.7]


def test_others_are_left_out_with_their_reasons() -> None:
    """By what differs from the newest environment; experiments with the same reasons share a line."""
    trials = [
        trial("old", 0, 0.2, None),
        trial("old", 1, 0.2, None),
        trial("a", 0, 0.9, conditions(metric="auc", training_set="rows-0", rows=900)),
        trial("b", 0, 0.1, conditions(training_set="rows-0", rows=900)),
        trial("c", 0, 0.1, conditions(training_set="rows-9", rows=800)),
        trial("d", 0, 0.4),
    ]
    found = leaderboard(trials)
    assert places(found.boards[0].rows) == [(1, "d", 0)]
    assert [(left.experiments, left.trials, left.reasons) for left in found.left_out] == [
        (["c", "b"], 2, ["other training rows"]),
        (["a"], 1, ["another metric", "other training rows"]),
        (["old"], 2, ["its conditions were not recorded"]),
    ]
    text = render(found, 20)
    assert "left out: 2 trials of 2 experiments: c, b: other training rows" in text
    assert "left out: 1 trial of experiment a: another metric, other training rows" in text
    assert "left out: 2 trials of experiment old: its conditions were not recorded" in text


def test_all_shows_every_environment_alone_the_newest_first() -> None:
    """Nothing is mixed, and nothing is left out but what no board can hold."""
    auc = conditions(metric="auc")
    trials = [trial("a", 0, 0.4), trial("old", 0, 0.2, None), trial("b", 0, 0.8, auc), trial("c", 0, 0.3)]
    trials.append(trial("d", 0, 0.3, auc, metric="gini"))
    found = leaderboard(trials, every=True)
    assert [board.experiments for board in found.boards] == [["a", "c"], ["b"], ["old"]]
    assert [board.conditions for board in found.boards] == [BASE, auc, None]
    assert [(left.experiments, left.reasons) for left in found.left_out] == [
        (["d"], ["a metric that this version does not know"])
    ]


def test_a_metric_may_be_asked_for() -> None:
    """The newest environment that has it; an unknown one is refused."""
    trials = [trial("a", 0, 0.8, conditions(metric="auc")), trial("b", 0, 0.3)]
    assert [board.experiments for board in leaderboard(trials, "auc").boards] == [["a"]]
    assert leaderboard(trials, "f1").boards == []
    with pytest.raises(ConfigError, match="--metric 'gini' is not one of accuracy, auc"):
        leaderboard(trials, "gini")


def test_what_a_board_of_the_first_version_leaves_out() -> None:
    """Its conditions are not known, so only the metric can be named."""
    auc = trial("a", 0, 0.8, conditions(metric="auc"))
    found = leaderboard([auc, trial("b", 0, 0.5), trial("old", 0, 0.2, None)])
    assert [left.reasons for left in found.left_out] == [["another environment"], ["another metric"]]
    assert "its conditions were not recorded" in render(found, 20).splitlines()[0]


def test_trials_without_a_score_are_counted_and_stand_last() -> None:
    """Pruned ones before failed ones, with their error."""
    trials = [
        trial("a", 0, None, error="out of memory"),
        trial("a", 1, None, pruned=True, fold_scores=[0.9]),
        trial("a", 2, 0.4),
    ]
    found = leaderboard(trials)
    assert [(row.rank, row.state) for row in found.boards[0].rows] == [(1, "complete"), (None, "pruned"), (None, "failed")]
    short, full = render(found, 20), render(found, 20, all_rows=True)
    assert "out of memory" not in short
    assert "without a score: 1 pruned, 1 failed; tidemill trials EXPERIMENT shows them" in short
    assert full.splitlines()[-2].endswith("num_leaves 0; out of memory")
    assert full.splitlines()[-1] == "without a score: 1 pruned, 1 failed"


def test_what_was_taken_over_from_an_earlier_experiment_stands_once() -> None:
    """On the board of both; among an experiment's own trials it stands too."""
    trials = [trial("a", 0, 0.4), trial("a", 1, 0.5), trial("b", 0, 0.4), trial("b", 1, 0.3)]
    [board] = leaderboard(trials).boards
    assert [(row.experiment, row.number) for row in board.rows] == [("b", 1), ("a", 0), ("a", 1)]
    assert board.experiments == ["a", "b"]
    assert len(leaderboard(trials[2:]).boards[0].rows) == 2


def test_the_table_has_a_line_a_trial() -> None:
    """Rank, score, learner, rounds, seconds, place, parameters; no more than the limit, 0 is all."""
    found = leaderboard([trial("a", number, 0.3 + number / 1000) for number in range(30)])
    lines = render(found, 20).splitlines()
    assert lines[0] == f"log_loss, environment {digest(BASE)[:12]}: 1,000 rows, 3 folds (stratified), seed 0"
    assert lines[1].split() == ["rank", "log_loss", "learner", "rounds", "seconds", "experiment/number", "parameters"]
    assert lines[2].split() == ["1", "0.3", "lightgbm", "10", "1.2", "a/0", "num_leaves", "0"]
    assert lines[-1] == "and 10 trials more: --limit 0 shows all"
    assert len(lines) == 23
    assert len(render(found, 0).splitlines()) == 32


def test_what_all_have_is_told_once() -> None:
    """A parameter that is fixed does not make each line longer; of one line alone nothing is taken away."""
    trials = [trial("a", number, 0.3, parameters={"num_leaves": number, "bagging_freq": 1}) for number in range(3)]
    lines = render(leaderboard(trials), 20).splitlines()
    assert lines[2].endswith("a/0                num_leaves 0")
    assert lines[5] == "all of these: bagging_freq 1"
    assert "all of these" not in render(leaderboard(trials[:1]), 20)


def test_lines_are_broken_where_the_terminal_ends() -> None:
    """Between words, under the parameters; no line is longer than the terminal where its words are not."""
    parameters = {f"parameter_{number}": number / 7 for number in range(12)}
    found = leaderboard([trial("a", 0, 0.3, parameters=parameters)])
    lines = render(found, 20, width=100).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "".join("".join(lines[2:]).split()).count("parameter_") == 12
    assert lines[3].startswith(" " * 40)


def test_the_csv_has_a_column_for_each_parameter() -> None:
    """The same columns first, whatever the learners."""
    trials = [trial("a", 0, 0.4, parameters={"b": 0.5, "a": "x,y"}), trial("a", 1, 0.3, parameters={"c": True})]
    rows = list(csv.DictReader(io.StringIO(to_csv(leaderboard(trials)))))
    assert list(rows[0]) == [*COLUMNS, "param.a", "param.b", "param.c"]
    assert [(row["rank"], row["number"], row["param.a"], row["param.c"]) for row in rows] == [
        ("1", "1", "", "True"),
        ("2", "0", "x,y", ""),
    ]
    assert to_csv(leaderboard([])).split() == [",".join(COLUMNS)]
    assert len(to_csv(leaderboard(trials), 1).splitlines()) == 2


def test_the_json_is_the_leaderboard() -> None:
    """Boards with their conditions and rows, and who is left out."""
    found = json.loads(to_json(leaderboard([trial("old", 0, 0.2, None), trial("a", 0, 0.4), trial("a", 1, 0.3)]), limit=1))
    assert [row["number"] for row in found["boards"][0]["rows"]] == [1]
    assert found["boards"][0]["conditions"]["folds"] == 3
    assert found["left_out"] == [{"experiments": ["old"], "trials": 1, "reasons": ["its conditions were not recorded"]}]


@pytest.mark.parametrize(
    ("given", "id"), [("first", "first"), ("count-1", "count-10"), ("asked", "asked-1"), ("latest", "asked-1")]
)
def test_an_experiment_goes_by_its_id_its_beginning_or_latest(given: str, id: str) -> None:
    """An id that is another's beginning means itself."""
    assert named(given, ["first", "first-2", "first", "count-10", "asked-1", "count-10"]) == id


@pytest.mark.parametrize(
    ("given", "known", "text"),
    [
        ("latest", [], "there is no trial yet"),
        ("count", ["count-1", "count-2", "a"], "may be count-1, count-2: write more"),
        ("x", ["a", "b", "c", "d"], "there are d, c, b and 1 more, and latest"),
    ],
)
def test_an_experiment_that_is_none_is_told(given: str, known: list[str], text: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=text):
        named(given, known)
