import contextlib
import hashlib
import importlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tidemill.bundle_files import Card, Manifest
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BundleRefused, Unavailable
from tidemill.learners.base import Samples
from tidemill.testing.tracker_contract import CHILDREN, Copied, Copy, TrackerContract, a_decision, a_trial, a_version
from tidemill.tracking.mlflow import MlflowTracker, create_store, start_ui
from tidemill.wiring import LEARNERS

SCHEMA = Schema((Feature("age", "number"), Feature("job", "category", ("a", "b"))), "rich", "binary", (0, 1))
BUNDLE = "b" * 64


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_store(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="module")
def model_text() -> bytes:
    lightgbm = pytest.importorskip("lightgbm")
    random = np.random.default_rng(0)
    matrix = np.column_stack([random.normal(size=400), random.integers(0, 2, 400)])
    data = lightgbm.Dataset(matrix, (matrix[:, 0] + matrix[:, 1] > 0.5).astype(float), categorical_feature=[1])
    parameters = {"objective": "binary", "verbose": -1, "num_threads": 1}
    text: str = lightgbm.train(parameters, data, 20).model_to_string()
    return text.encode()


@pytest.fixture
def bundle(tmp_path: Path, model_text: bytes) -> str:
    folder = tmp_path / "bundles" / BUNDLE
    folder.mkdir(parents=True)
    (folder / "model.txt").write_bytes(model_text)
    (folder / "schema.json").write_bytes(msgspec.json.encode(SCHEMA))
    return BUNDLE


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def copy(store: Path) -> Callable[[], Copy]:
    return lambda: read_copy(store)


def read_copy(store: Path) -> Copy:
    """What stands in MLflow's tables and files. Every run has one key, no two the same; a version has one alias at most."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        rows = connection.execute("select run_uuid, status, artifact_uri from runs").fetchall()
        folders = {run: Path(uri.removeprefix("file://")) for run, _, uri in rows}
        tags, parameters, metrics = (fields_of(connection, table) for table in ("tags", "params", "latest_metrics"))
        history: dict[str, dict[int, float]] = {run: {} for run in folders}
        logged = "select run_uuid, key, step, value from metrics order by step"
        for run, key, step, value in connection.execute(logged).fetchall():
            if key.startswith("best_"):
                assert step not in history[run]
                history[run][step] = value
        aliases = "select a.alias, t.value from registered_model_aliases a join model_version_tags t using (name, version)"
        slots = {alias: int(value) for alias, value in connection.execute(aliases + " where t.key = 'tidemill.version'")}
        versions = connection.execute("select value from model_version_tags where key = 'tidemill.version'").fetchall()
    keys = {run: tags[run].pop("tidemill.key") for run in folders}
    assert len(set(keys.values())) == len(keys)
    assert len(set(versions)) == len(versions)
    runs = {
        keys[run]: Copied(
            keys.get(tags[run].get("mlflow.parentRunId", ""), ""),
            status,
            parameters.get(run, {}),
            metrics.get(run, {}),
            {name: text for name, text in tags[run].items() if not name.startswith(("mlflow.", "tidemill.experiment"))},
            history[run],
            read_table(folders[run] / "trials.json"),
            read_report(folders[run] / "report.html"),
        )
        for run, status, _ in rows
    }
    return Copy(runs, slots)


def fields_of(connection: sqlite3.Connection, table: str) -> dict[str, dict[str, Any]]:
    rows = connection.execute(f"select run_uuid, key, value from {table}").fetchall()
    assert len({row[:2] for row in rows}) == len(rows)
    found: dict[str, dict[str, Any]] = {}
    for run, key, value in rows:
        found.setdefault(run, {})[key] = value
    return found


def read_table(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    written = msgspec.json.decode(file.read_bytes())
    assert len(set(written["columns"])) == len(written["columns"])
    return [dict(zip(written["columns"], row, strict=True)) for row in written["data"]]


def read_report(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def tracker_of(store: Path, experiment: Any = "each") -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{store}", "adult", experiment, store.parent / "bundles", CHILDREN)


class TestMlflow(TrackerContract):
    @pytest.fixture(params=["each", "one"])
    def tracker(self, request: pytest.FixtureRequest, store: Path) -> MlflowTracker:
        return tracker_of(store, request.param)


def test_mlflow_reads_the_table_as_its_own(store: Path) -> None:
    """It is found by its tag, as the pages find it, and loads as a DataFrame."""
    import mlflow
    from mlflow import MlflowClient

    tracker_of(store).record_trials([a_trial(number) for number in range(5)])
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("adult/count-1")
    assert experiment is not None
    mlflow.set_tracking_uri(f"sqlite:///{store}")  # its search of runs (3.17) looks there, whatever the client's
    frame = client.load_table(experiment.experiment_id, "trials.json")
    assert list(frame["number"]) == [4, 3, 2, 1, 0]
    assert list(frame["param.num_leaves"]) == [35, 34, 33, 32, 31]


def test_experiments_are_one_each_or_one_for_all(store: Path) -> None:
    """``each`` names an MLflow experiment after each retraining, ``one`` keeps them all together."""
    for experiment in ("each", "one"):
        for number in (1, 2):
            tracker_of(store, experiment).record_trials([a_trial(0, experiment=f"count-{number}")])
    with contextlib.closing(sqlite3.connect(store)) as connection:
        names = {name for (name,) in connection.execute("select name from experiments")}
    assert names == {"Default", "adult/count-1", "adult/count-2", "adult"}


def test_runs_last_as_long_as_the_trials(store: Path) -> None:
    """Times in MLflow are those of the trials, not of the copying."""
    trial = a_trial(0)
    tracker_of(store).record_trials([trial])
    with contextlib.closing(sqlite3.connect(store)) as connection:
        rows = connection.execute("select start_time, end_time from runs order by end_time desc limit 1").fetchall()
    assert rows == [(trial.at - 2500, trial.at)]


def test_the_registered_model_is_the_bundle_bit_for_bit(store: Path, bundle: str, model_text: bytes) -> None:
    """MLflow's own loader gives a model that predicts exactly what the bundle's model predicts, and knows its columns."""
    import lightgbm
    import mlflow
    import mlflow.lightgbm

    tracker = tracker_of(store)
    tracker.record_decision(a_decision(bundle, 1))
    tracker.record_version(a_version(bundle))
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    loaded = mlflow.lightgbm.load_model("models:/adult@champion")
    matrix = np.random.default_rng(1).normal(size=(500, 2))
    matrix[::7, 0] = np.nan
    expected = lightgbm.Booster(model_str=model_text.decode()).predict(matrix)
    assert np.array_equal(loaded.predict(matrix), expected)
    info = mlflow.models.get_model_info("models:/adult@champion")
    assert info.signature.inputs.input_names() == ["age", "job"]
    assert info.metadata == {"tidemill.version": "1", "tidemill.bundle": bundle}
    frame: dict[str, list[float | None]] = {"age": [0.5, None], "job": [1.0, 0.0]}
    answers = mlflow.pyfunc.load_model("models:/adult@champion").predict(frame_of(frame))
    assert len(answers) == 2


OTHERS = ("xgboost", "catboost", "linear", "forest")


def a_bundle(root: Path, name: str, data: bytes) -> str:
    card = Card(
        learner=name,
        metric="auc",
        score=0.75,
        parameters={},
        rounds=5,
        seed=0,
        data_version=0,
        rows=400,
        training_set="5e7",
        experiment="count-1",
        version=1,
        created_at=0,
    )
    manifest = Manifest(**msgspec.structs.asdict(card), files={"model.txt": hashlib.sha256(data).hexdigest()}, digest="")
    folder = root / BUNDLE
    folder.mkdir(parents=True)
    (folder / "model.txt").write_bytes(data)
    (folder / "schema.json").write_bytes(msgspec.json.encode(SCHEMA))
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return BUNDLE


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_any_learner_answers_with_its_own_bits(store: Path, name: str) -> None:
    """Through ``mlflow.pyfunc``, from a DataFrame of the encoded columns; MLflow's own flavour loads it, if it has one."""
    import mlflow

    random = np.random.default_rng(0)
    matrix = np.column_stack([random.normal(size=400), random.integers(0, 2, 400)])
    labels = (matrix[:, 0] + matrix[:, 1] > 0.5).astype(float)
    samples = Samples(matrix, labels, None, SCHEMA.columns, (1,), "binary", 2)
    learner = LEARNERS.find(name)()
    model = learner.fit(samples, learner.space("binary").first, 5, 0, 1)
    bundle = a_bundle(store.parent / "bundles", name, model.to_bytes())
    tracker = tracker_of(store)
    tracker.record_decision(msgspec.structs.replace(a_decision(bundle, 1), learner=name, threshold=0.375))
    tracker.record_version(a_version(bundle))
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    loaded = mlflow.pyfunc.load_model("models:/adult@champion")
    asked = np.column_stack([random.normal(size=100), random.integers(0, 4, 100)])
    asked[::7, 0] = np.nan
    answers = loaded.predict(frame_of({"job": list(asked[:, 1]), "age": list(asked[:, 0])}))
    assert np.array_equal(answers, model.predict(asked))
    unknown = np.column_stack([asked[:, 0], np.full(100, np.nan)])
    assert np.array_equal(loaded.predict(frame_of({"age": list(asked[:, 0])})), model.predict(unknown))
    version = mlflow.MlflowClient().get_model_version_by_alias("adult", "champion")
    assert version.tags["tidemill.threshold"] == "0.375"
    flavors = mlflow.models.get_model_info("models:/adult@champion").flavors
    if name in flavors:
        importlib.import_module(f"mlflow.{name}").load_model("models:/adult@champion")
    assert (name in flavors) == (name in ("xgboost", "catboost"))


def test_a_damaged_copy_of_a_model_is_refused(store: Path) -> None:
    """Its bytes are held to the bundle's hash before a library parses them."""
    import mlflow

    tracker_of(store).record_version(a_version(a_bundle(store.parent / "bundles", "forest", b"{}")))
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    (copied,) = store.parent.glob("mlflow-artifacts/**/model.txt")
    copied.write_bytes(b"[]")
    with pytest.raises(BundleRefused):
        mlflow.pyfunc.load_model("models:/adult@champion")


def frame_of(columns: dict[str, list[float | None]]) -> Any:
    pandas: Any = pytest.importorskip("pandas")
    return pandas.DataFrame(columns, dtype=float)


def test_what_a_person_deleted_does_not_stop_the_copy(store: Path, bundle: str) -> None:
    """Runs, experiments and models deleted in MLflow come back when they are written again."""
    from mlflow import MlflowClient

    tracker = tracker_of(store)
    tracker.record_trials([a_trial(0)])
    tracker.record_version(a_version(bundle))
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("adult/count-1")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)
    client.delete_experiment(experiment.experiment_id)
    client.delete_registered_model("adult")
    tracker.record_trials([a_trial(0), a_trial(1)])
    tracker.record_version(a_version(bundle))
    assert set(read_copy(store).runs) == {"count-1", "count-1/0", "count-1/1"}
    assert read_copy(store).slots == {"champion": 1}


def test_a_store_is_made_whole_in_wal_mode(empty_store: Path) -> None:
    """The store is in WAL mode from the start, and no draft of it is left; making it again changes nothing."""
    with contextlib.closing(sqlite3.connect(empty_store)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    before = empty_store.read_bytes()
    create_store(f"sqlite:///{empty_store}")
    assert empty_store.read_bytes() == before
    assert {file.name for file in empty_store.parent.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_the_pages_are_for_this_machine_only(store: Path) -> None:
    """The command binds to 127.0.0.1, names the hosts it answers to, and serves no artifacts for others."""
    command = start_ui(f"sqlite:///{store}", 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--allowed-hosts") + 1] == "127.0.0.1:5001,localhost:5001"
    assert "--no-serve-artifacts" in command


def test_a_position_that_a_person_has_overwritten_is_none(store: Path) -> None:
    """The tag can be edited in MLflow's pages: then everything is exported again."""
    tracker = tracker_of(store)
    assert tracker.advance({}, {("a", 0): 3})
    for text in ("", "[]", '{"a": 3}', '{"a:0": "3"}'):
        with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
            connection.execute("UPDATE experiment_tags SET value = ?", (text,))
        assert tracker.positions() == {}
    assert tracker.advance({}, {("a", 0): 4})


def test_a_store_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """The pages of a project in a folder where nothing can be written."""
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"^MLflow's store .*file/mlflow.db: .*\Z"):
        start_ui(f"sqlite:///{tmp_path}/file/mlflow.db", 5001)
