"""What every learner must do: subclass ``LearnerContract``, give it the ``learner`` fixture, and say what kind it is."""

# ruff: noqa: S101  a contract asserts

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from msgspec.structs import replace

from tidemill.bundle_files import Card
from tidemill.bundles import BundleStore
from tidemill.core.encoder import Encoder
from tidemill.core.folds import make_folds
from tidemill.core.metrics import METRICS, metric
from tidemill.core.schema import Feature, Schema, Task
from tidemill.core.space import Choice
from tidemill.errors import BundleRefused
from tidemill.learners.base import Fold, Learner, Model, Parameters, Samples, Scored, Terms, out_of_fold

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


def cross_validated(
    learner: Learner,
    samples: Samples,
    parameters: Parameters,
    name: str = "",
    folds: Sequence[Fold] = (),
    **choices: Any,
) -> Scored:
    """Three folds, one thread, few rounds; ``choices`` of other ``Terms``."""
    terms = replace(Terms(rounds_max=60, patience=10), **choices)
    return learner.cross_validate(samples, folds or three_folds(samples), parameters, metric(name, samples.task), terms)


def three_folds(samples: Samples) -> list[Fold]:
    """Shuffled, always in the same way."""
    return make_folds(samples.labels, samples.task, 3, "stratified", 0)


def same_bits(one: Model, other: Model, samples: Samples) -> bool:
    """Whether two models give the same answers to the last bit."""
    return one.predict(samples.matrix).tobytes() == other.predict(samples.matrix).tobytes()


class LearnerContract:
    """``learner`` is the learner on trial.

    ``sampled`` are parameters under which rows or columns are drawn, so that the seed matters; none where a learner has no
    use for chance. One that ``grows`` learns round by round; any other has one round. Where the format of its models is its
    ``own`` no library reads them, so that its one engine is the reference.
    """

    sampled: ClassVar[Parameters] = {}
    grows = True
    own = False

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
        if self.own:
            assert checked
            assert (checked.engine, checked.faster()) == (reference.engine, None)
        found = [reference, *([checked] if checked and not self.own else [])]
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
        parameters = self.sampled | learner.space(task).fixed
        measure, folds = metric("", task), three_folds(samples)
        scored = cross_validated(learner, weighted, parameters, seed=3, rounds_max=600)
        assert not scored.pruned
        assert scored.score == pytest.approx(np.mean(scored.fold_scores))
        for (rows, held), score in zip(folds, scored.fold_scores, strict=True):
            part = replace(weighted, matrix=samples.matrix[rows], labels=samples.labels[rows], weights=weights[rows])
            answers = learner.fit(part, parameters, scored.rounds, seed=3, threads=1).predict(samples.matrix[held])
            assert measure.function(samples.labels[held], answers) == pytest.approx(score, abs=1e-12)
        predicted = out_of_fold(learner, weighted, folds, parameters, scored.rounds, seed=3, threads=1)
        again = [measure.function(samples.labels[held], predicted[held]) for _, held in folds]
        assert again == pytest.approx(scored.fold_scores, abs=1e-12)

    @pytest.mark.parametrize("name", [m.name for m in METRICS.values()])
    def test_a_bar_changes_only_how_much_is_tried(self, learner: Learner, name: str) -> None:
        """Above it the first fold is all, scored as it is alone after as many rounds; else nothing is changed."""
        measure = METRICS[name]
        samples = a_table(measure.tasks[0])
        first = three_folds(samples)[:1]
        whole = cross_validated(learner, samples, self.sampled, name)
        alone = cross_validated(learner, samples, self.sampled, name, folds=first)
        loss = measure.loss(alone.score)
        assert cross_validated(learner, samples, self.sampled, name, bar=np.inf) == whole
        for bar in (loss + 0.01 * abs(loss), loss, np.nextafter(loss, -np.inf), -np.inf):
            found = cross_validated(learner, samples, self.sampled, name, bar=bar)
            assert found.pruned or (bar >= loss and found == whole)
            if found.pruned:
                assert measure.loss(found.score) > bar
                shorter = cross_validated(learner, samples, self.sampled, name, folds=first, rounds_max=found.rounds)
                assert found == replace(shorter, pruned=True)

    @pytest.mark.parametrize(("name", "task"), [(m.name, task) for m in METRICS.values() for task in m.tasks])
    def test_every_metric_can_be_tuned_for(self, learner: Learner, name: str, task: Task) -> None:
        """Scores are finite, and better than where there is nothing to learn, and than after one round."""
        samples = a_table(task)
        best = cross_validated(learner, samples, {}, name)
        blind = cross_validated(learner, replace(samples, matrix=samples.matrix[::-1].copy()), {}, name)
        assert metric(name, task).better(best.score, blind.score)
        assert 1 <= best.rounds <= (60 if self.grows else 1)
        if self.grows:
            one = cross_validated(learner, samples, {}, name, rounds_max=1)
            assert metric(name, task).better(best.score, one.score)

    def test_folds_stop_jointly_after_the_patience(self, learner: Learner) -> None:
        """More patience or rounds than it takes change nothing; the limit on rounds holds. Without rounds neither counts."""
        samples = a_table("binary")
        if not self.grows:
            assert cross_validated(learner, samples, {}, rounds_max=1, patience=1) == cross_validated(learner, samples, {})
            models = [learner.fit(samples, {}, rounds, seed=0, threads=1) for rounds in (1, 50)]
            assert models[0].to_bytes() == models[1].to_bytes()
            return
        best = cross_validated(learner, samples, {}, rounds_max=500, patience=30)
        assert best.rounds < 400
        assert cross_validated(learner, samples, {}, rounds_max=2000, patience=30) == best
        assert cross_validated(learner, samples, {}, rounds_max=best.rounds, patience=30) == best
        assert cross_validated(learner, samples, {}, rounds_max=5).rounds <= 5

    def test_the_same_choices_give_the_same_bits(self, learner: Learner) -> None:
        """Same seed, same bytes and score; the seed matters where rows are sampled; threads never do."""
        samples, parameters = a_table("binary", 2000), self.sampled
        model = learner.fit(samples, parameters, 30, seed=1, threads=1)
        assert learner.fit(samples, parameters, 30, seed=1, threads=1).to_bytes() == model.to_bytes()
        assert same_bits(model, learner.fit(samples, parameters, 30, seed=1, threads=2), samples)
        assert same_bits(model, learner.fit(samples, parameters, 30, seed=2, threads=1), samples) != bool(parameters)
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
        assert space.first
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

    @pytest.mark.parametrize("task", TASKS)
    def test_a_code_that_the_rows_lack_is_answered_like_a_missing_value(self, learner: Learner, task: Task) -> None:
        """Also one between codes that they have, and in the cross-validation as in the fit."""
        samples = a_table(task)
        samples.matrix[samples.matrix[:, 2] == 2.0, 2] = 9.0
        answers = learner.fit(samples, {}, 20, seed=0, threads=1).predict(
            np.array([[0.5, 0.5, code] for code in (np.nan, 2.0, 7.0, 10.0, -1.0)])
        )
        assert len({answer.tobytes() for answer in answers}) == 1

    @pytest.mark.parametrize("task", TASKS)
    def test_columns_that_say_nothing_and_huge_numbers_train(self, learner: Learner, task: Task) -> None:
        """A constant, a column that is always missing, and values beyond float32."""
        samples = a_table(task)
        extra = np.column_stack([np.ones(600), np.full(600, np.nan), np.full(600, 3.0), np.full(600, np.nan)])
        samples.matrix[::50, 1] = 1e300
        samples.matrix[1::50, 1] = -1e300
        samples = replace(
            samples,
            matrix=np.column_stack([samples.matrix, extra]),
            columns=(*samples.columns, "one", "none", "one code", "no code"),
            categorical=(2, 5, 6),
        )
        model = learner.fit(samples, {}, 20, seed=0, threads=1)
        assert np.isfinite(model.predict(samples.matrix)).all()
        assert np.isfinite(cross_validated(learner, samples, {}).score)
        found = learner.importances(model.to_bytes())
        assert found[3:].tolist() == [0.0] * 4

    def test_a_class_that_no_row_has_is_hardly_ever_the_answer(self, learner: Learner) -> None:
        """A fold by time may lack one: the answers are still about all classes of the task."""
        samples = a_table("multiclass")
        samples = replace(samples, labels=np.where(samples.labels == 1, 2, samples.labels))
        answers = learner.fit(samples, {}, 20, seed=0, threads=1).predict(samples.matrix)
        assert answers.shape == (600, 3)
        assert np.allclose(answers.sum(axis=1), 1.0, atol=1e-6)
        assert answers[:, 1].max() < 0.01
        assert np.mean(answers.argmax(axis=1) == samples.labels) > 0.8

    @pytest.mark.parametrize("task", TASKS)
    def test_importances_say_what_the_signal_is_in(self, learner: Learner, task: Task) -> None:
        """In a number and in a category; what is constant has none. They come from the bytes alone."""
        noise, table = np.random.default_rng(1), a_table(task, 1000)
        matrix = np.column_stack([noise.normal(size=1000), table.matrix[:, 2], table.matrix[:, 0], np.ones(1000)])
        for column, signal in ((2, np.nan_to_num(matrix[:, 2])), (1, np.nan_to_num(matrix[:, 1]) % 2 - 0.5)):
            labels = {"binary": signal > 0, "multiclass": np.digitize(signal, [-0.2, 0.2]), "regression": signal}[task]
            samples = replace(
                table, matrix=matrix, labels=labels.astype(np.float64), columns=("a", "b", "c", "d"), categorical=(1,)
            )
            found = learner.importances(learner.fit(samples, {}, 20, seed=0, threads=1).to_bytes())
            assert found.dtype == np.float64
            assert found.shape == (4,)
            assert found.argmax() == column
            assert found.min() >= 0
            assert found[3] == 0

    def test_a_bundle_of_it_is_written_and_loaded(self, learner: Learner, tmp_path: Path) -> None:
        """With what its library needs in the child that tries it, and none of its answers changed."""
        samples = a_table("binary")
        features = (Feature("first", "number"), Feature("second", "number"), Feature("code", "category"))
        schema = Schema(features, "label", "binary", ("no", "yes"))
        encoder = Encoder.fit(schema, {"code": [f"{code}" for code in range(6)]})
        card = Card(
            learner=learner.name,
            metric="log_loss",
            score=0.5,
            parameters={},
            rounds=10,
            seed=0,
            data_version=0,
            rows=600,
            training_set="",
            experiment="",
            version=1,
            created_at=0,
        )
        store = BundleStore(tmp_path, {learner.name: learner}.__getitem__)
        model = learner.fit(samples, {}, 10, seed=0, threads=1)
        with store.load(store.write(model, encoder, card, samples.matrix)) as bundle:
            assert same_bits(bundle.model, model, samples)

    def test_a_matrix_of_another_width_is_refused(self, learner: Learner) -> None:
        """A missing column is an error, never an answer."""
        samples = a_table("binary")
        model = learner.fit(samples, {}, 5, seed=0, threads=1)
        with pytest.raises(Exception, match=r"(?i)feature"):
            model.predict(samples.matrix[:, :2])

    def test_text_that_is_no_model_is_refused(self, learner: Learner) -> None:
        """With the error that bundles know."""
        for data in (b"", b"no model", b"\xff\xfe", b"{}", b"[]", b'{"learner": {}}', b"[" * 100_000):
            with pytest.raises(BundleRefused):
                learner.load(data)

    def test_a_metric_that_is_not_defined_on_a_fold_fails_the_trial(self, learner: Learner) -> None:
        """Not silently NaN: one class only has no AUC."""
        samples = a_table("binary")
        one_class = np.flatnonzero(samples.labels == 0)
        folds = [(np.arange(500), one_class[one_class >= 500])]
        with pytest.raises(ValueError, match="auc"):
            learner.cross_validate(samples, folds, {}, metric("auc", "binary"), Terms(rounds_max=5, patience=5))
