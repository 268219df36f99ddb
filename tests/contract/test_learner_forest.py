"""Random forests against the contract, and what is their own."""

import subprocess
import sys
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from tidemill.core.schema import Task
from tidemill.errors import BundleRefused
from tidemill.learners.base import Learner, Parameters
from tidemill.learners.forest import Forest, _File, _ranked, _Ranks
from tidemill.testing.learner_contract import TASKS, LearnerContract, a_table

FEW = {"n_estimators": 20}


class TestForest(LearnerContract):
    sampled: ClassVar[Parameters] = {"max_samples": 0.5, "n_estimators": 20}
    grows = False
    own = True

    @pytest.fixture
    def learner(self) -> Learner:
        return Forest()

    @pytest.mark.parametrize("task", TASKS)
    def test_it_gives_the_bits_of_scikit_learn(self, task: Task) -> None:
        """Also where values are missing that never were when the trees were grown, and beside every limit."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        samples = a_table(task)
        ranks = _Ranks(_ranked(samples))
        kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
        forest = kind(random_state=0, n_jobs=1, **FEW).fit(ranks.of(samples.matrix), samples.labels)
        model = Forest().fit(samples, dict(FEW), 1, seed=0, threads=1)
        limits = np.concatenate([tree.tree_.threshold for tree in forest.estimators_])
        near = np.concatenate([limits, *(np.nextafter(limits.astype(np.float32), to) for to in (-np.inf, np.inf))])
        edges = np.column_stack([near, near[::-1], np.arange(len(near)) % 7])
        edges[::5, 0] = np.nan
        for matrix in (samples.matrix, edges[np.abs(edges[:, :2]).max(axis=1) < 1e30]):
            wanted = forest.predict(ranks.of(matrix)) if task == "regression" else forest.predict_proba(ranks.of(matrix))
            found = model.predict(matrix)
            assert found.tobytes() == np.ascontiguousarray(wanted[:, 1] if task == "binary" else wanted).tobytes()

    def test_codes_are_ranked_by_their_mean_label(self) -> None:
        """Of several classes along the line on which their shares lie furthest apart."""
        binary = a_table("binary")
        assert {code % 2 for code in _ranked(binary)[2][:3]} == {1}
        assert len({code % 2 for code in _ranked(a_table("multiclass"))[2][:3]}) == 1

    def test_no_damage_does_harm(self) -> None:
        """Arrays with any of their bytes changed are refused, or give finite answers."""
        samples = a_table("binary")
        data = Forest().fit(samples, dict(FEW), 1, seed=0, threads=1).to_bytes()
        file, random = msgspec.json.decode(data, type=_File), np.random.default_rng(0)
        refused = 0
        for number in range(300):
            name = ("inputs", "limits", "answers")[number % 3]
            array = bytearray(getattr(file, name))
            if number % 30 < 3:
                del array[random.integers(len(array)) :]
            for place in random.integers(len(array), size=random.integers(1, 20)):
                array[place] = random.integers(256)
            try:
                model = Forest().load_checked(msgspec.json.encode(msgspec.structs.replace(file, **{name: bytes(array)})))
            except BundleRefused:
                refused += 1
            else:
                assert np.isfinite(model.predict(samples.matrix)).all()
        assert refused > 100

    @pytest.mark.parametrize(
        "damage", [{"trees": 0}, {"trees": 19}, {"outputs": 2}, {"task": "multiclass"}, {"ranked": {3: [0]}}, {"outputs": 0}]
    )
    def test_a_file_that_does_not_belong_together_is_refused(self, damage: dict[str, object]) -> None:
        data = Forest().fit(a_table("binary"), dict(FEW), 1, seed=0, threads=1).to_bytes()
        file = msgspec.structs.replace(msgspec.json.decode(data, type=_File), **damage)
        with pytest.raises(BundleRefused):
            Forest().load_checked(msgspec.json.encode(file))

    def test_it_serves_without_scikit_learn(self) -> None:
        """Which, with what it imports, takes a hundred megabytes."""
        data = Forest().fit(a_table("binary"), {"n_estimators": 2}, 1, seed=0, threads=1).to_bytes()
        code = (
            "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None;"
            "import numpy; from tidemill.learners.forest import Forest;"
            "print(Forest().load(sys.stdin.buffer.read()).predict(numpy.zeros((1, 3)))[0] >= 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], input=data, check=True, capture_output=True)
        assert done.stdout == b"True\n"
