"""What every learner must do: subclass ``LearnerContract`` and give it the ``learner`` fixture."""

# ruff: noqa: S101  a contract asserts

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tidemill.core.folds import make_folds
from tidemill.core.metrics import METRICS, metric
from tidemill.core.schema import Task
from tidemill.core.space import Choice
from tidemill.errors import BundleRefused
from tidemill.learners.base import Learner, Model, Parameters, Samples, Scored

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
MISSING_SHARE = 0.05


def a_table(task: Task, rows: int = 600, codes: int = 6) -> Samples:
    """Two numbers and a category with something to learn in each, and missing values."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, codes, rows).astype(np.float64)
    matrix = np.column_stack([rng.normal(size=rows), rng.normal(size=rows), code])
    signal = matrix[:, 0] - matrix[:, 1] + np.where(code % 2 == 0, 1.5, -1.5) + rng.normal(scale=0.5, size=rows)
    labels = {"binary": signal > 0, "multiclass": np.digitize(signal, [-1.0, 1.0]), "regression": signal}[task]
    matrix[rng.random(matrix.shape) < MISSING_SHARE] = np.nan
    classes = {"binary": 2, "multiclass": 3, "regression": 0}[task]
    return Samples(matrix, labels.astype(np.float64), None, ("first", 'a "name", [odd]: é', "code"), (2,), task, classes)


def cross_validated(learner: Learner, samples: Samples, parameters: Parameters, name: str = "", **choices: Any) -> Scored:
    """Three folds, one thread, few rounds."""
    folds = make_folds(samples.labels, samples.task, 3, "stratified", 0)
    chosen = {"seed": 0, "threads": 1, "rounds_max": 60, "patience": 10} | choices
    return learner.cross_validate(samples, folds, parameters, metric(name, samples.task), **chosen)


def same_bits(one: Model, other: Model, samples: Samples) -> bool:
    """Whether two models give the same answers to the last bit."""
    return one.predict(samples.matrix).tobytes() == other.predict(samples.matrix).tobytes()


class LearnerContract:
    """``learner`` is the learner on trial."""

    @pytest.fixture
    def learner(self) -> Learner:
        raise NotImplementedError

    @pytest.mark.parametrize("task", TASKS)
    def test_it_learns(self, learner: Learner, task: Task) -> None:
        """Answers have the contract's shape and type, and beat a constant."""
        samples = a_table(task)
        answers = learner.fit(samples, {}, 40, seed=0, threads=1).predict(samples.matrix)
        assert answers.dtype == np.float64
        assert answers.shape == ((600, 3) if task == "multiclass" else (600,))
        measure = metric("r2" if task == "regression" else "accuracy", task)
        assert measure.function(samples.labels, answers) > 0.7

    @pytest.mark.parametrize("task", TASKS)
    def test_a_model_survives_its_bytes_bit_for_bit(self, learner: Learner, task: Task) -> None:
        """The loaded model answers with the same bits, also where all is missing, unseen or huge; its bytes are the same."""
        samples = a_table(task)
        model = learner.fit(samples, {}, 30, seed=0, threads=1)
        loaded = learner.load(model.to_bytes())
        hostile = np.array([[np.nan] * 3, [1e300, -1e300, 99.0], [-0.0, 1e-40, -1.0], [0.0, 0.0, 2.0**31]])
        assert same_bits(model, loaded, samples)
        assert same_bits(model, loaded, replace(samples, matrix=hostile))
        assert loaded.to_bytes() == model.to_bytes()

    @pytest.mark.parametrize("task", TASKS)
    def test_every_engine_gives_the_same_bits(self, learner: Learner, task: Task) -> None:
        """What is ready at once, what is fastest, and the library itself; on the model's own limits too, row by row and
        together; each says what it is.
        """
        samples = a_table(task)
        data = learner.fit(samples, {}, 30, seed=0, threads=1).to_bytes()
        reference, checked = learner.load_reference(data), learner.load_checked(data)
        found = [reference, *([checked] if checked else [])]
        found += [faster for model in found if (faster := model.faster())]
        assert len({model.engine for model in found}) == len(found)
        for model in found:
            assert model.engine
            assert model.to_bytes() == data
            for matrix in (samples.matrix, model.edge_rows()):
                wanted = reference.predict(matrix)
                assert model.predict(matrix).tobytes() == wanted.tobytes()
                alone = [model.predict(matrix[i : i + 1]) for i in range(min(len(matrix), 50))]
                assert np.array(alone).tobytes() == wanted[:50].tobytes()

    @pytest.mark.parametrize("task", TASKS)
    def test_a_row_has_one_answer_however_it_is_batched(self, learner: Learner, task: Task) -> None:
        """One by one, all at once, not contiguous; no rows give no answers."""
        samples = a_table(task)
        model = learner.fit(samples, {}, 30, seed=0, threads=1)
        together = model.predict(samples.matrix)
        alone = np.concatenate([model.predict(samples.matrix[i : i + 1]) for i in range(50)])
        assert alone.tobytes() == together[:50].tobytes()
        assert model.predict(np.asfortranarray(samples.matrix)).tobytes() == together.tobytes()
        assert model.predict(samples.matrix[:0]).shape == (0, *together.shape[1:])

    @pytest.mark.parametrize("task", TASKS)
    def test_the_score_is_the_metric_of_the_folds_models(self, learner: Learner, task: Task) -> None:
        """Fitting a fold's rows again with the found rounds, parameters and weights gives the very score that was recorded:
        what is served is what was scored.
        """
        samples = a_table(task)
        weights = np.where(samples.matrix[:, 0] > 0, 5.0, 0.5)
        weighted = replace(samples, weights=weights)
        parameters = {"bagging_fraction": 0.6} | learner.space(task).fixed
        folds = make_folds(samples.labels, task, 3, "stratified", 0)
        measure = metric("", task)
        scored = learner.cross_validate(weighted, folds, parameters, measure, 3, 1, 60, 10)
        assert scored.score == pytest.approx(np.mean(scored.fold_scores))
        for (rows, held), score in zip(folds, scored.fold_scores, strict=True):
            part = replace(weighted, matrix=samples.matrix[rows], labels=samples.labels[rows], weights=weights[rows])
            model = learner.fit(part, parameters, scored.rounds, seed=3, threads=1)
            assert measure.function(samples.labels[held], model.predict(samples.matrix[held])) == pytest.approx(
                score, abs=1e-12
            )

    @pytest.mark.parametrize(("name", "task"), [(m.name, task) for m in METRICS.values() for task in m.tasks])
    def test_every_metric_can_be_tuned_for(self, learner: Learner, name: str, task: Task) -> None:
        """Scores are finite, and better than after one round."""
        samples = a_table(task)
        one = cross_validated(learner, samples, {}, name, rounds_max=1)
        best = cross_validated(learner, samples, {}, name)
        assert 1 <= best.rounds <= 60
        assert metric(name, task).better(best.score, one.score)

    def test_folds_stop_jointly_after_the_patience(self, learner: Learner) -> None:
        """More patience or rounds than it takes change nothing; the limit on rounds holds."""
        samples = a_table("binary")
        best = cross_validated(learner, samples, {}, rounds_max=500, patience=30)
        assert best.rounds < 400
        assert cross_validated(learner, samples, {}, rounds_max=2000, patience=30) == best
        assert cross_validated(learner, samples, {}, rounds_max=best.rounds, patience=30) == best
        assert cross_validated(learner, samples, {}, rounds_max=5).rounds <= 5

    def test_the_same_choices_give_the_same_bits(self, learner: Learner) -> None:
        """Same seed, same model and score; the seed matters where rows are sampled; threads never do."""
        samples = a_table("binary", 2000)
        parameters = {"bagging_fraction": 0.5, "feature_fraction": 0.7}
        model = learner.fit(samples, parameters, 30, seed=1, threads=1)
        assert same_bits(model, learner.fit(samples, parameters, 30, seed=1, threads=1), samples)
        assert same_bits(model, learner.fit(samples, parameters, 30, seed=1, threads=2), samples)
        assert not same_bits(model, learner.fit(samples, parameters, 30, seed=2, threads=1), samples)
        assert cross_validated(learner, samples, parameters) == cross_validated(learner, samples, parameters)

    def test_weights_change_the_model_and_its_score(self, learner: Learner) -> None:
        """In the cross-validation and in the fit alike."""
        samples = a_table("binary")
        weighted = replace(samples, weights=np.where(samples.labels > 0, 20.0, 1.0))
        answers = [learner.fit(s, {}, 20, seed=0, threads=1).predict(samples.matrix) for s in (samples, weighted)]
        assert answers[1].mean() > answers[0].mean()
        assert cross_validated(learner, samples, {}) != cross_validated(learner, weighted, {})

    @pytest.mark.parametrize("task", TASKS)
    def test_every_parameter_of_its_space_has_an_effect(self, learner: Learner, task: Task) -> None:
        """A parameter that does nothing is refused a place: its two ends give different models."""
        samples, space = a_table(task, 2000, codes=40), learner.space(task)
        space.check()
        for name, dimension in space.dimensions.items():
            low, high = dimension.values[:2] if isinstance(dimension, Choice) else (dimension.low, dimension.high)
            one, other = (learner.fit(samples, {**space.fixed, name: end}, 20, seed=0, threads=1) for end in (low, high))
            assert not same_bits(one, other, samples), name

    def test_many_categories_and_unseen_ones_are_answered(self, learner: Learner) -> None:
        """A column of 5,000 codes trains; codes that it never saw are answered like a missing value."""
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 5000, 8000).astype(np.float64)
        matrix = np.column_stack([rng.normal(size=8000), codes])
        samples = Samples(matrix, (codes % 2).astype(np.float64), None, ("number", "code"), (1,), "binary", 2)
        model = learner.fit(samples, {}, 20, seed=0, threads=1)
        unseen = model.predict(np.array([[0.5, 77_777.0], [0.5, np.nan]]))
        assert np.isfinite(unseen).all()
        assert unseen[0] == unseen[1]

    def test_a_matrix_of_another_width_is_refused(self, learner: Learner) -> None:
        """A missing column is an error, never an answer."""
        samples = a_table("binary")
        model = learner.fit(samples, {}, 5, seed=0, threads=1)
        with pytest.raises(Exception, match=r"(?i)feature"):
            model.predict(samples.matrix[:, :2])

    def test_text_that_is_no_model_is_refused(self, learner: Learner) -> None:
        """With the error that bundles know."""
        for data in (b"", b"no model", b"\xff\xfe", b"{}"):
            with pytest.raises(BundleRefused):
                learner.load(data)

    def test_a_metric_that_is_not_defined_on_a_fold_fails_the_trial(self, learner: Learner) -> None:
        """Not silently NaN: one class only has no AUC."""
        samples = a_table("binary")
        one_class = np.flatnonzero(samples.labels == 0)
        folds = [(np.arange(500), one_class[one_class >= 500])]
        with pytest.raises(ValueError, match="auc"):
            learner.cross_validate(samples, folds, {}, metric("auc", "binary"), 0, 1, 5, 5)
