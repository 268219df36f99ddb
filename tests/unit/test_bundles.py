"""Bundles: what is written, what is refused, what is kept."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from tidemill.bundle_files import (
    DECISION,
    EDGE_ROWS,
    FILES,
    GOLDEN_ROWS,
    OPTIONAL,
    OUT_OF_FOLD,
    Card,
    Golden,
    OutOfFold,
    gives,
)
from tidemill.bundles import BundleStore
from tidemill.core.encoder import Encoder
from tidemill.core.reference import Reference, number_column
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BundleRefused, Unavailable, UnknownModel
from tidemill.learners.base import Learner, Matrix, Model, Samples
from tidemill.learners.lightgbm import LightGBM
from tidemill.testing.full_disk import files_at_most

LEARNERS = {"lightgbm": LightGBM()}
SCHEMA = Schema((Feature("age", "number"), Feature("work", "category", ("a", "b"))), "paid", "binary", ("no", "yes"))
CARD = Card(
    learner="lightgbm",
    metric="log_loss",
    score=0.25,
    parameters={"learning_rate": 1e-05, "num_leaves": 7, "linear_tree": False},
    rounds=20,
    seed=3,
    data_version=1000,
    rows=300,
    training_set="ab" * 32,
    experiment="count-1",
    version=4,
    created_at=1_700_000_000_000,
)

THRESHOLD = 0.3


def a_model(rounds: int = 5) -> tuple[Model, Encoder, Matrix]:
    rng = np.random.default_rng(0)
    matrix = np.column_stack([rng.normal(size=300), rng.integers(0, 2, 300)])
    labels = (matrix.sum(axis=1) > 0.5).astype(np.float64)
    matrix[::7, 0] = np.nan
    encoder = Encoder.fit(SCHEMA, {"age": [1.0], "work": ["a"]})
    samples = Samples(matrix, labels, None, SCHEMA.columns, encoder.categorical, "binary", 2)
    return LightGBM().fit(samples, {}, rounds, seed=0, threads=1), encoder, matrix


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", LEARNERS.__getitem__)


@pytest.fixture
def bundle(store: BundleStore) -> str:
    model, encoder, matrix = a_model()
    reference = Reference([number_column("age", matrix[:, 0], np.arange(300) // 15)], [1.0], blocked=True)
    return store.write(model, encoder, CARD, matrix, THRESHOLD, OutOfFold(matrix[:, 1], matrix[:, 0]), reference)


def test_what_is_loaded_is_what_was_written(store: BundleStore, bundle: str) -> None:
    """Model, encoder, schema and card; the golden rows with their missing values and the model's bits."""
    model, encoder, matrix = a_model()
    with store.load(bundle) as loaded:
        assert loaded.hash == bundle
        assert loaded.schema == SCHEMA == store.schema(bundle)
        assert loaded.encoder == encoder
        assert loaded.model.predict(matrix).tobytes() == model.predict(matrix).tobytes()
        assert loaded.golden.matrix[:GOLDEN_ROWS].tobytes() == matrix[:GOLDEN_ROWS].tobytes()
        assert loaded.golden.answers.tobytes() == model.predict(loaded.golden.matrix).tobytes()
        assert store.manifest(bundle) == loaded.manifest
        card = msgspec.structs.asdict(loaded.manifest)
        assert {name: card[name] for name in msgspec.structs.asdict(CARD)} == msgspec.structs.asdict(CARD)


def test_the_name_is_the_content(store: BundleStore, bundle: str) -> None:
    """The same content twice is one bundle, under the first card; another model is another."""
    model, encoder, matrix = a_model()
    assert store.write(model, encoder, msgspec.structs.replace(CARD, version=9), matrix, THRESHOLD) == bundle
    assert store.manifest(bundle).version == 4
    other = store.write(*a_model(6)[:2], CARD, matrix)
    assert store.bundles() == sorted([bundle, other])


def test_the_reference_is_kept_and_not_needed_to_serve(store: BundleStore, bundle: str) -> None:
    """With the encoder that it was counted with; None where a version kept none; refused where a bit differs."""
    _, encoder, matrix = a_model()
    found = store.reference(bundle)
    assert found is not None
    assert found[0] == encoder
    assert np.sum(found[1].features[0].counts) == 300
    assert store.reference(store.write(*a_model(6)[:2], CARD, matrix)) is None
    file = store.root / bundle / "reference.json"
    file.write_bytes(file.read_bytes().replace(b"age", b"ega"))
    store.load(bundle).close()
    for use in (store.reference, store.verify):
        with pytest.raises(BundleRefused, match=r"reference\.json"):
            use(bundle)


@pytest.mark.parametrize("name", [*FILES, *OPTIONAL])
def test_no_bit_flips_unnoticed(store: BundleStore, bundle: str, name: str) -> None:
    """Any single bit of any file: refused, by the file's name. Every bit of the small files, spread ones of the others."""
    path = store.root / bundle / name
    data = path.read_bytes()
    for bit in range(0, len(data) * 8, max(1, len(data) * 8 // 400)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(BundleRefused, match=name):
            store.verify(bundle)
    path.write_bytes(data)
    store.verify(bundle)


@pytest.mark.parametrize("name", [*FILES, DECISION])
def test_missing_and_cut_files_are_refused(store: BundleStore, bundle: str, name: str) -> None:
    """Empty, cut by a byte, longer by one, gone, a folder: by every way in."""
    path = store.root / bundle / name
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data[: len(data) // 2], data + b" "):
        path.write_bytes(damaged)
        for way_in in (store.verify, store.load, store.try_out, store.manifest, store.schema, store.try_in_child):
            with pytest.raises(BundleRefused, match=name):
                way_in(bundle)
    path.unlink()
    with pytest.raises(BundleRefused, match=name):
        store.load(bundle)
    path.mkdir()
    with pytest.raises(BundleRefused, match=name):
        store.load(bundle)


def test_the_threshold_is_part_of_what_a_bundle_is(store: BundleStore, bundle: str) -> None:
    """Another one is another bundle; 0.5 needs no file, so that a bundle without one is what it was."""
    model, encoder, matrix = a_model()
    plain = store.write(model, encoder, CARD, matrix)
    assert len({bundle, plain, store.write(model, encoder, CARD, matrix, 0.4)}) == 3
    assert not (store.root / plain / DECISION).exists()
    for name, threshold in ((bundle, THRESHOLD), (plain, 0.5)):
        with store.load(name) as loaded:
            assert loaded.threshold == threshold


def test_predictions_out_of_fold_are_kept_and_not_needed_to_serve(store: BundleStore, bundle: str) -> None:
    """They come back to the bit; damaged or gone, they are refused where they are asked for, and the model still loads."""
    model, encoder, matrix = a_model()
    found = store.out_of_fold(bundle)
    assert found is not None
    assert (found.labels.tobytes(), found.predictions.tobytes()) == (matrix[:, 1].tobytes(), matrix[:, 0].tobytes())
    assert store.out_of_fold(store.write(model, encoder, CARD, matrix)) is None
    path = store.root / bundle / OUT_OF_FOLD
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1]), path.unlink):
        damage()
        store.load(bundle).close()
        with pytest.raises(BundleRefused, match=OUT_OF_FOLD):
            store.out_of_fold(bundle)


def test_an_extra_file_is_refused(store: BundleStore, bundle: str) -> None:
    """Whoever put it there may have changed more."""
    (store.root / bundle / "hook.py").write_text("")
    with pytest.raises(BundleRefused, match=r"hook\.py"):
        store.verify(bundle)


def test_a_good_bundle_under_a_wrong_name_is_refused(store: BundleStore, bundle: str) -> None:
    """The announced hash is what counts."""
    (store.root / bundle).rename(store.root / ("0" * 64))
    with pytest.raises(BundleRefused):
        store.load("0" * 64)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc", "a" * 63, "A" * 64, "f" * 64, "f" * 64 + "\n", "\0"])
def test_no_name_leads_out_of_the_store(store: BundleStore, bundle: str, name: str) -> None:
    """Only 64 hex digits are a name; a bundle that is not there is unknown."""
    for way_in in (store.verify, store.load, store.try_out, store.manifest, store.schema, store.try_in_child):
        with pytest.raises(UnknownModel):
            way_in(name)


def test_writing_mends_a_damaged_bundle(store: BundleStore, bundle: str) -> None:
    """The same content again takes the damaged one's place."""
    (store.root / bundle / "model.txt").write_bytes(b"")
    model, encoder, matrix = a_model()
    assert store.write(model, encoder, CARD, matrix, THRESHOLD) == bundle
    store.verify(bundle)


def test_pruning_keeps_what_is_named_and_what_is_loaded(store: BundleStore, bundle: str) -> None:
    """A bundle that somebody has loaded stays until it is closed."""
    model, encoder, matrix = a_model(6)
    kept = store.write(model, encoder, CARD, matrix)
    first, second = store.load(bundle), store.load(bundle)
    assert store.prune([kept]) == []
    first.close()
    assert store.prune([kept]) == []
    second.close()
    second.close()
    assert store.prune([kept]) == [bundle]
    assert store.bundles() == [kept]
    assert sorted(path.name for path in store.root.iterdir()) == sorted([".lock", kept])


def test_a_full_disk_is_unavailable_and_leaves_nothing(store: BundleStore, bundle: str) -> None:
    """The trainer comes again later: the bundle is whole or absent, and no half of it stays."""
    model, encoder, matrix = a_model(6)
    before = sorted(store.root.iterdir())
    with files_at_most(1000), pytest.raises(Unavailable, match=r"/bundles cannot be written: File too large\Z"):
        store.write(model, encoder, CARD, matrix)
    assert sorted(store.root.iterdir()) == before
    assert store.write(model, encoder, CARD, matrix) in store.bundles()


def test_a_store_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """A file in its place, or a folder that takes nothing: one line that names it."""
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "bundles", Path("/proc/bundles")):
        store = BundleStore(root, LEARNERS.__getitem__)
        with pytest.raises(Unavailable, match=f"^the bundle store {root} cannot be written: "):
            store.write(*a_model()[:2], CARD, a_model()[2])


def test_a_store_that_is_not_there_is_empty(store: BundleStore) -> None:
    """And is not made by looking."""
    assert store.bundles() == []
    assert store.prune([]) == []
    assert not store.root.exists()


def a_linear_model() -> tuple[Model, Encoder, Matrix]:
    """A model that only its library can score."""
    _, encoder, matrix = a_model()
    samples = Samples(matrix, matrix[:, 1], None, SCHEMA.columns, encoder.categorical, "binary", 2)
    return LightGBM().fit(samples, {"linear_tree": True, "min_data_in_leaf": 5}, 5, seed=0, threads=1), encoder, matrix


class Recording(BundleStore):
    """Notes what is tried in a child, and does not do it."""

    def __init__(self, root: Path, learner: Callable[[str], Learner]) -> None:
        super().__init__(root, learner)
        self.tried: list[str] = []

    def try_in_child(self, bundle: str, seconds: float = 60) -> None:
        self.tried.append(bundle)


def test_a_bundle_from_elsewhere_needs_a_child_only_for_its_library(tmp_path: Path) -> None:
    """A checked parser needs none; either way the golden answers come out."""
    store = Recording(tmp_path, LEARNERS.__getitem__)
    table, linear = (store.write(*model[:2], CARD, model[2]) for model in (a_model(), a_linear_model()))
    for bundle, engine, tried in ((table, "numpy", []), (linear, "lightgbm", [linear])):
        with store.load(bundle) as loaded:
            assert loaded.model.engine == engine
            assert gives(loaded.model, loaded.golden)
        assert store.tried == tried


def test_a_table_model_is_loaded_without_lightgbm(store: BundleStore, bundle: str) -> None:
    """Nothing of the library is imported: that is a second and 60 MB."""
    code = (
        "import sys; from pathlib import Path;"
        "from tidemill.bundles import BundleStore; from tidemill.wiring import learner;"
        f"bundle = BundleStore(Path({str(store.root)!r}), learner).load({bundle!r});"
        "bundle.model.predict(bundle.golden.matrix); assert 'lightgbm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_at_the_models_limits_are_golden_too(store: BundleStore, bundle: str) -> None:
    """Beside those that the writer's caller gave, with the library's own answers; infinite values are missing there."""
    model, _, matrix = a_model()
    reference = LightGBM().load_reference(model.to_bytes())
    with store.load(bundle) as loaded:
        golden = loaded.golden
        assert len(golden.matrix) == GOLDEN_ROWS + min(EDGE_ROWS, len(model.edge_rows()))
        assert golden.answers.tobytes() == reference.predict(golden.matrix).tobytes()
    edges = {value for value in model.edge_rows()[:, 0].tolist() if math.isfinite(value)}
    assert edges & set(golden.matrix[GOLDEN_ROWS:, 0].tolist()) - set(matrix[:, 0].tolist())


class Wrong(LightGBM):
    """A learner whose quick engine is wrong above a number's limit."""

    def load_checked(self, data: bytes) -> Model | None:
        return WrongModel(super().load_checked(data))


class WrongModel:
    engine = "wrong"

    def __init__(self, model: Model | None) -> None:
        assert model is not None
        self._model = model

    def predict(self, matrix: Matrix) -> Matrix:
        return self._model.predict(matrix) + np.where(matrix[:, 0] > 1e299, 1e-16, 0.0)

    def to_bytes(self) -> bytes:
        return self._model.to_bytes()

    def edge_rows(self) -> Matrix:
        return self._model.edge_rows()

    def faster(self) -> None:
        return None


def test_an_engine_that_is_wrong_in_one_bit_does_not_serve(tmp_path: Path) -> None:
    """The writer sees on which rows it is, and makes these golden; the loader falls back to the library, and says so."""
    store = Recording(tmp_path, {"lightgbm": Wrong()}.__getitem__)
    model, encoder, matrix = a_model()
    with capture_logs() as logs:
        bundle = store.write(WrongModel(model), encoder, CARD, matrix)
        with store.load(bundle) as loaded:
            assert store.tried == [bundle]
            assert loaded.golden.answers.tobytes() == loaded.model.predict(loaded.golden.matrix).tobytes()
            assert not gives(WrongModel(model), loaded.golden)
        with store.load(bundle) as loaded:
            assert loaded.model.engine == "lightgbm"
    assert store.tried == [bundle, bundle]
    assert [log["event"] for log in logs] == ["engine_differs", "engine_refused", "engine_refused"]
    assert logs[0]["rows"] > 0
    assert (logs[1]["bundle"], logs[1]["engine"]) == (bundle, "wrong")


def test_without_golden_rows_only_the_library_is_believed(tmp_path: Path) -> None:
    """Nothing was compared."""
    model, _, matrix = a_model()
    assert gives(model, Golden(matrix, model.predict(matrix)))
    assert not gives(model, Golden(np.empty(0), np.empty(0)))
