"""What every ``Tracker`` must do; a test class inherits it and gives the three fixtures."""

# ruff: noqa: S101  assertions are what a contract is made of

from collections.abc import Callable
from typing import Any

from msgspec import Struct, structs

from tidemill.messages import Conditions, JournalEntry, ModelVersion, Trial
from tidemill.tracking.base import Tracker

CHILDREN = 3
"""Trials with a run of their own: the first ones, and as many of the best."""
CONDITIONS = Conditions("auc", "binary", 2, "time", False, "s", ("age", "job"), "5e7", 5000, 0)


class Copied(Struct, frozen=True):
    """One run as the tool shows it: the parent's key, its status, what was logged, as text or numbers; of a parent the
    history of the best score, by step, the table's rows, and the report.
    """

    parent: str
    status: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    history: dict[int, float] = {}
    table: list[dict[str, Any]] = []
    report: str = ""


class Copy(Struct, frozen=True):
    """All that the tool holds: runs by key (``experiment`` or ``experiment/number``), and by slot our version's number."""

    runs: dict[str, Copied]
    slots: dict[str, int]


def a_trial(number: int, error: str = "", experiment: str = "count-1", score: float | None = None) -> Trial:
    """A finished trial, or one whose learner failed."""
    if score is None and not error:
        score = 0.5 + number / 64
    folds = [] if score is None else [score - 0.125, score + 0.125]
    parameters = {"num_leaves": 31 + number, "learning_rate": 0.1, "boosting": "gbdt"}
    at = 1_700_000_000_000 + number
    trial = Trial(experiment, number, parameters, "auc", score, folds, 90 + number, 2.5, "env", at, error)
    return structs.replace(trial, learner="lightgbm", proposer="optuna", conditions=CONDITIONS)


def a_pruned_trial(number: int) -> Trial:
    """One that was given up after its first fold."""
    return structs.replace(a_trial(number), score=None, fold_scores=[0.25], pruned=True)


def a_decision(bundle: str = "", version: int = 0, verdict: str = "promoted", experiment: str = "count-1") -> JournalEntry:
    """The end of an experiment."""
    entry = JournalEntry(experiment, "experiment", "1000 outcomes", "promoted", 1_700_000_100_000)
    return structs.replace(
        entry,
        learner="lightgbm",
        environment="env",
        verdict=verdict,
        experiment=experiment,
        data_version=1000,
        rows=5000,
        training_set="5e7",
        metric="auc",
        score=0.75,
        parameters={"num_leaves": 32},
        rounds=91,
        trials=3,
        seconds=60.0,
        version=version,
        bundle=bundle,
        statistic={"lower": 0.01},
    )


def a_version(bundle: str, version: int = 1, slot: str = "champion", experiment: str = "count-1") -> ModelVersion:
    """What a slot holds."""
    made = ModelVersion(version, bundle, bundle, "s", "champion", 1000, experiment, 1_700_000_200_000, version)
    return structs.replace(made, state=slot)


class TrackerContract:
    """Fixtures: ``tracker``, which gives ``CHILDREN`` trials runs; ``copy``, which reads the tool's own files past the
    tracker; ``bundle``, a model's hash.
    """

    def test_trials_are_runs_under_their_experiment(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """Each of a few trials is one run with what is known of it; those without a score are marked."""
        tracker.record_trials([a_trial(0), a_trial(1, error="no split"), a_pruned_trial(2)])
        tracker.record_trials([a_trial(0, experiment="count-2")])
        runs = copy().runs
        assert set(runs) == {"count-1", "count-1/0", "count-1/1", "count-1/2", "count-2", "count-2/0"}
        good, failed, pruned = runs["count-1/0"], runs["count-1/1"], runs["count-1/2"]
        assert (good.parent, good.status, failed.status, pruned.status) == ("count-1", "FINISHED", "FAILED", "KILLED")
        assert good.parameters == {"num_leaves": "31", "learning_rate": "0.1", "boosting": "gbdt", "learner": "lightgbm"}
        assert {good.metrics["auc"], good.metrics["rounds"], good.metrics["seconds"]} == {0.5, 90.0, 2.5}
        assert sorted(good.metrics.values()) == [0.375, 0.5, 0.625, 2.5, 90.0]
        assert "auc" not in {**failed.metrics, **pruned.metrics}
        assert sorted(pruned.metrics.values()) == [0.25, 2.5, 92.0]
        assert good.tags == {
            "tidemill.environment": "env",
            "tidemill.state": "complete",
            "tidemill.proposer": "optuna",
        }
        assert failed.tags == good.tags | {"tidemill.state": "failed", "error": "no split"}
        assert pruned.tags == good.tags | {"tidemill.state": "pruned"}

    def test_of_many_trials_the_first_and_the_best_are_runs(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """While the search goes on the first ones; once it has ended, the best ones too. The table has them all."""
        scores = [0.5, 0.9, 0.6, 0.4, 0.95, 0.7, 0.2, 0.92]
        trials = [a_trial(number, score=score) for number, score in enumerate(scores)]
        tracker.record_trials(trials[:2])
        tracker.record_trials(trials[:6], {2, 3, 4, 5})
        assert set(copy().runs) == {"count-1", "count-1/0", "count-1/1", "count-1/2"}
        assert copy().runs["count-1"].status == "RUNNING"
        tracker.record_trials(trials, {6, 7})
        tracker.record_decision(a_decision(), trials)
        runs = copy().runs
        assert set(runs) == {"count-1", *(f"count-1/{number}" for number in (0, 1, 2, 4, 7))}
        assert [row["number"] for row in runs["count-1"].table] == [4, 7, 1, 5, 2, 0, 3, 6]

    def test_an_import_ends_by_itself(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """Nobody decides on it: its best trials are shown as soon as it is there, and its run is finished."""
        tracker.record_trials([a_trial(number) for number in range(8)], ended=True)
        runs = copy().runs
        assert set(runs) == {"count-1", *(f"count-1/{number}" for number in (0, 1, 2, 5, 6, 7))}
        assert runs["count-1"].status == "FINISHED"

    def test_the_table_has_every_trial(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """The best first, then those without a score, with all that a trial says of itself."""
        other = structs.replace(a_trial(3), learner="linear", parameters={"alpha": 1.0}, metric="f1", threshold=0.25)
        tracker.record_trials([a_pruned_trial(0), a_trial(1, error="no split"), a_trial(2), other, a_trial(4)])
        rows = copy().runs["count-1"].table
        assert [(row["number"], row["rank"], row["state"]) for row in rows] == [
            (3, 1, "complete"),
            (4, 1, "complete"),
            (2, 2, "complete"),
            (0, None, "pruned"),
            (1, None, "failed"),
        ]
        assert rows[2] == {
            "rank": 2,
            "number": 2,
            "score": 0.53125,
            "metric": "auc",
            "state": "complete",
            "learner": "lightgbm",
            "proposer": "optuna",
            "rounds": 92,
            "seconds": 2.5,
            "threshold": 0.5,
            "fold_1": 0.40625,
            "fold_2": 0.65625,
            "environment": "env",
            "error": "",
            "param.alpha": None,
            "param.boosting": "gbdt",
            "param.learning_rate": 0.1,
            "param.num_leaves": 33,
        }
        assert (rows[0]["learner"], rows[0]["param.alpha"], rows[0]["threshold"]) == ("linear", 1.0, 0.25)
        assert (rows[3]["fold_1"], rows[3]["fold_2"], rows[4]["error"]) == (0.25, None, "no split")

    def test_the_best_so_far_is_a_history(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """A step a trial, from the first that has a score; other data begin anew, though under the same experiment."""
        scores = [0.5, 0.25, 0.75, 0.7]
        trials = [a_pruned_trial(0), *(a_trial(number, score=score) for number, score in enumerate(scores, 1))]
        tracker.record_trials(trials[:3])
        tracker.record_trials(trials, {3, 4})
        assert copy().runs["count-1"].history == {1: 0.5, 2: 0.5, 3: 0.75, 4: 0.75}
        trials.append(structs.replace(a_trial(5, score=0.375), environment="other"))
        tracker.record_trials(trials, {5}, ended=True)
        assert copy().runs["count-1"].history[5] == 0.375

    def test_a_decision_finishes_the_experiment(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """The parent run holds the winner's parameters, what it was trained on and how, and what it scored."""
        before = tracker.experiments()
        tracker.record_trials([a_trial(0)])
        tracker.record_decision(a_decision(), [a_trial(0)])
        tracker.record_decision(a_decision(verdict="failed", experiment="count-2"))
        run = copy().runs["count-1"]
        assert (before, tracker.experiments()) == (0, 2)
        assert (run.parent, run.status, copy().runs["count-2"].status) == ("", "FINISHED", "FAILED")
        assert run.parameters == {
            "num_leaves": "32",
            "learner": "lightgbm",
            "proposer": "optuna",
            "data_version": "1000",
            "rows": "5000",
            "training_set": "5e7",
            "metric": "auc",
            "folds": "2",
            "split": "time",
            "features": "2",
        }
        assert (run.metrics["auc"], run.metrics["trials"], run.metrics["seconds"]) == (0.75, 3.0, 60.0)

    def test_a_threshold_is_told_where_there_is_one(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """By a metric that decides classes."""
        trial = structs.replace(a_trial(0), metric="f1", threshold=0.375)
        tracker.record_trials([trial])
        tracker.record_decision(structs.replace(a_decision(), metric="f1", threshold=0.375), [trial])
        runs = copy().runs
        assert runs["count-1"].parameters["threshold"] == runs["count-1/0"].parameters["threshold"] == "0.375"

    def test_the_report_is_asked_for_once(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """Of an experiment that has ended; one that has no report yet may get it later."""
        pages = iter(["", "<p>\u00e9</p>"])
        for _ in range(3):
            tracker.record_decision(a_decision(), [a_trial(0)], lambda: next(pages))
        assert copy().runs["count-1"].report == "<p>\u00e9</p>"

    def test_names_that_nobody_expects_are_taken(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """A command may have any id, another project's learner any parameters, and many of them."""
        names = ["x" * 300, "", "a/../b", "..", 'quote"d', *(f"p{number}" for number in range(150))]
        experiment = 'it\'s "quoted" ' + "y" * 600
        trial = structs.replace(a_trial(0, experiment=experiment), parameters=dict.fromkeys(names, 1))
        failed = a_trial(1, error="z" * 10_000, experiment=experiment)
        for _ in range(2):
            tracker.record_trials([trial, failed])
            tracker.record_decision(a_decision(experiment=experiment), [trial, failed])
        runs = copy().runs.values()
        (parent,) = (run for run in runs if not run.parent)
        children = [run for run in runs if run.parent]
        assert (parent.status, sorted(child.status for child in children)) == ("FINISHED", ["FAILED", "FINISHED"])
        assert max(len(child.parameters) for child in children) >= 153
        assert len(parent.table) == 2

    def test_slots_follow_the_versions(self, tracker: Tracker, copy: Callable[[], Copy], bundle: str) -> None:
        """Slots point at the last version announced for them, whether or not its decision came first."""
        tracker.record_version(a_version(bundle, 1))
        tracker.record_decision(a_decision(bundle, 1))
        tracker.record_decision(a_decision(bundle, 2, experiment="count-2"))
        tracker.record_version(a_version(bundle, 1, "previous"))
        tracker.record_version(a_version(bundle, 2, experiment="count-2"))
        assert copy().slots == {"previous": 1, "champion": 2}
        tracker.record_version(a_version(bundle, 1))
        assert copy().slots == {"previous": 1, "champion": 1}

    def test_a_bundle_that_is_gone_leaves_the_slot_empty(
        self, tracker: Tracker, copy: Callable[[], Copy], bundle: str
    ) -> None:
        """A pruned bundle does not stop the copy, and the slot does not keep an old answer."""
        tracker.record_version(a_version(bundle, 1))
        tracker.record_decision(a_decision("0" * 64, 2, experiment="count-2"))
        tracker.record_version(a_version("0" * 64, 2, experiment="count-2"))
        assert copy().slots == {}

    def test_everything_twice_is_the_same_as_once(self, tracker: Tracker, copy: Callable[[], Copy], bundle: str) -> None:
        """After a crash calls are repeated, in order, from any point before: nothing changes. Nor does it where the decision
        is read before the trials.
        """
        trials = [*(a_trial(number) for number in range(9)), a_trial(9, error="no split")]
        calls: list[Callable[[], None]] = [
            lambda: tracker.record_trials(trials[:2]),
            lambda: tracker.record_trials(trials, set(range(2, 10))),
            lambda: tracker.record_decision(a_decision(bundle, 1), trials, lambda: "<p>"),
            lambda: tracker.record_version(a_version(bundle, 1)),
            lambda: tracker.record_decision(
                JournalEntry("p", "promotion", "by hand", "promoted", 1_700_000_300_000, version=1)
            ),
        ]
        for call in calls:
            call()
        once = copy()
        assert len(once.runs) == 1 + CHILDREN + CHILDREN
        for call in calls[2:]:
            call()
            assert copy() == once
        for call in calls:
            call()
        assert copy() == once
        tracker.record_trials(trials, set(range(2, 10)))
        assert copy() == once

    def test_a_decision_may_come_before_its_trials(self, tracker: Tracker, copy: Callable[[], Copy], bundle: str) -> None:
        """They are of two topics: what stands there in the end is the same."""
        trials = [a_trial(number) for number in range(9)]
        tracker.record_decision(a_decision(bundle, 1), trials)
        tracker.record_trials(trials, set(range(5)))
        tracker.record_trials(trials, set(range(5, 9)))
        runs = copy().runs
        assert runs["count-1"].status == "FINISHED"
        assert sorted(runs["count-1"].history) == list(range(9))
        assert set(runs) == {"count-1", *(f"count-1/{number}" for number in (0, 1, 2, 6, 7, 8))}

    def test_it_says_up_to_where_it_holds_everything(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """A new tool stands nowhere; positions move only from where they are said to be."""
        first, second = {("a.trials", 0): 3}, {("a.trials", 0): 5, ("a.models", 2): 1}
        assert tracker.positions() == {}
        assert tracker.advance({}, first)
        assert tracker.positions() == first
        assert not tracker.advance({}, second)
        assert tracker.positions() == first
        assert tracker.advance(first, second)
        assert tracker.positions() == second
        assert copy() == Copy({}, {})
