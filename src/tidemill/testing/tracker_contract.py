"""What every ``Tracker`` must do; a test class inherits it and gives the three fixtures."""

# ruff: noqa: S101  assertions are what a contract is made of

from collections.abc import Callable

from msgspec import Struct, structs

from tidemill.messages import JournalEntry, ModelVersion, Trial
from tidemill.tracking.base import Tracker


class Copied(Struct, frozen=True):
    """One run as the tool shows it: the parent's key, its status, and what was logged, as text or numbers."""

    parent: str
    status: str
    parameters: dict[str, str]
    metrics: dict[str, float]


class Copy(Struct, frozen=True):
    """All that the tool holds: runs by key (``experiment`` or ``experiment/number``), and by slot our version's number."""

    runs: dict[str, Copied]
    slots: dict[str, int]


def a_trial(number: int, error: str = "", experiment: str = "count-1") -> Trial:
    """A finished trial, or one whose learner failed."""
    score = None if error else 0.5 + number / 64
    folds = [] if score is None else [score - 0.125, score + 0.125]
    parameters = {"num_leaves": 31 + number, "learning_rate": 0.1, "boosting": "gbdt"}
    at = 1_700_000_000_000 + number
    return Trial(experiment, number, parameters, "auc", score, folds, 90 + number, 2.5, "env", at, error)


def a_decision(bundle: str = "", version: int = 0, verdict: str = "promoted", experiment: str = "count-1") -> JournalEntry:
    """The end of an experiment."""
    entry = JournalEntry(experiment, "experiment", "1000 outcomes", "promoted", 1_700_000_100_000)
    return structs.replace(
        entry,
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
    """Fixtures: ``tracker``; ``copy``, which reads the tool's own files past the tracker; ``bundle``, a model's hash."""

    def test_trials_are_runs_under_their_experiment(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """Each trial is one run with its parameters, its score and every fold's; a failed one is marked."""
        tracker.record_trials([a_trial(0), a_trial(1, error="no split"), a_trial(0, experiment="count-2")])
        runs = copy().runs
        assert set(runs) == {"count-1", "count-1/0", "count-1/1", "count-2", "count-2/0"}
        good, failed = runs["count-1/0"], runs["count-1/1"]
        assert (good.parent, good.status, failed.status) == ("count-1", "FINISHED", "FAILED")
        assert good.parameters == {"num_leaves": "31", "learning_rate": "0.1", "boosting": "gbdt"}
        assert {good.metrics["auc"], good.metrics["rounds"], good.metrics["seconds"]} == {0.5, 90.0, 2.5}
        assert sorted(good.metrics.values()) == [0.375, 0.5, 0.625, 2.5, 90.0]
        assert "auc" not in failed.metrics

    def test_a_decision_finishes_the_experiment(self, tracker: Tracker, copy: Callable[[], Copy]) -> None:
        """The parent run holds the winner's parameters, what it was trained on and what it scored."""
        before = tracker.experiments()
        tracker.record_trials([a_trial(0)])
        tracker.record_decision(a_decision())
        tracker.record_decision(a_decision(verdict="failed", experiment="count-2"))
        run = copy().runs["count-1"]
        assert (before, tracker.experiments()) == (0, 2)
        assert (run.parent, run.status, copy().runs["count-2"].status) == ("", "FINISHED", "FAILED")
        assert run.parameters == {"num_leaves": "32", "data_version": "1000", "rows": "5000", "training_set": "5e7"}
        assert (run.metrics["auc"], run.metrics["trials"], run.metrics["seconds"]) == (0.75, 3.0, 60.0)

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
        """After a crash calls are repeated, in order, from any point before: nothing changes."""
        calls: list[Callable[[], None]] = [
            lambda: tracker.record_trials([a_trial(0), a_trial(1)]),
            lambda: tracker.record_trials([a_trial(2, error="no split")]),
            lambda: tracker.record_decision(a_decision(bundle, 1)),
            lambda: tracker.record_version(a_version(bundle, 1)),
            lambda: tracker.record_decision(
                JournalEntry("p", "promotion", "by hand", "promoted", 1_700_000_300_000, version=1)
            ),
        ]
        for call in calls:
            call()
        once = copy()
        for call in calls:
            call()
            assert copy() == once
        tracker.record_trials([a_trial(0), a_trial(1), a_trial(2, error="no split")])
        assert copy() == once

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
