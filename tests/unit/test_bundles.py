"""Bundles: what is written, what is refused, what is kept."""

import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidemill.bundles import FILES, GOLDEN_ROWS, BundleStore, Card
from tidemill.core.encoder import Encoder
from tidemill.core.schema import Feature, Schema
from tidemill.errors import BundleRefused, Unavailable, UnknownModel
from tidemill.learners.base import Matrix, Model, Samples
from tidemill.learners.lightgbm import LightGBM

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
    return store.write(model, encoder, CARD, matrix)


def test_what_is_loaded_is_what_was_written(store: BundleStore, bundle: str) -> None:
    """Model, encoder, schema and card; the golden rows with their missing values and the model's bits."""
    model, encoder, matrix = a_model()
    with store.load(bundle) as loaded:
        assert loaded.hash == bundle
        assert loaded.schema == SCHEMA == store.schema(bundle)
        assert loaded.encoder == encoder
        assert loaded.model.predict(matrix).tobytes() == model.predict(matrix).tobytes()
        assert loaded.golden.matrix.tobytes() == matrix[:GOLDEN_ROWS].tobytes()
        assert loaded.golden.answers.tobytes() == model.predict(matrix[:GOLDEN_ROWS]).tobytes()
        assert store.manifest(bundle) == loaded.manifest
        card = msgspec.structs.asdict(loaded.manifest)
        assert {name: card[name] for name in msgspec.structs.asdict(CARD)} == msgspec.structs.asdict(CARD)


def test_the_name_is_the_content(store: BundleStore, bundle: str) -> None:
    """The same content twice is one bundle, under the first card; another model is another."""
    model, encoder, matrix = a_model()
    assert store.write(model, encoder, msgspec.structs.replace(CARD, version=9), matrix) == bundle
    assert store.manifest(bundle).version == 4
    other = store.write(*a_model(6)[:2], CARD, matrix)
    assert store.bundles() == sorted([bundle, other])


@pytest.mark.parametrize("name", FILES)
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


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_files_are_refused(store: BundleStore, bundle: str, name: str) -> None:
    """Empty, cut by a byte, longer by one, gone, a folder: by every way in."""
    path = store.root / bundle / name
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data[: len(data) // 2], data + b" "):
        path.write_bytes(damaged)
        for way_in in (store.verify, store.load, store.manifest, store.schema, store.try_in_child):
            with pytest.raises(BundleRefused, match=name):
                way_in(bundle)
    path.unlink()
    with pytest.raises(BundleRefused, match=name):
        store.load(bundle)
    path.mkdir()
    with pytest.raises(BundleRefused, match=name):
        store.load(bundle)


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
    for way_in in (store.verify, store.load, store.manifest, store.schema, store.try_in_child):
        with pytest.raises(UnknownModel):
            way_in(name)


def test_writing_mends_a_damaged_bundle(store: BundleStore, bundle: str) -> None:
    """The same content again takes the damaged one's place."""
    (store.root / bundle / "model.txt").write_bytes(b"")
    model, encoder, matrix = a_model()
    assert store.write(model, encoder, CARD, matrix) == bundle
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
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(Unavailable, match=r"/bundles cannot be written: File too large\Z"):
            store.write(model, encoder, CARD, matrix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
