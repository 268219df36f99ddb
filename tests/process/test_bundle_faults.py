"""Bundles with real processes: writers that are killed, models that kill their reader, loaders beside a pruner."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidemill.bundle_files import GOLDEN, MANIFEST, MODEL, address, manifest_bytes, parse_manifest
from tidemill.bundles import BundleStore
from tidemill.errors import BundleRefused, UnknownModel
from tidemill.learners.lightgbm import LightGBM

pytestmark = pytest.mark.process
LEARNERS = {"lightgbm": LightGBM()}

WRITE = """
import sys
sys.path.insert(0, {unit!r})
from test_bundles import *
store = BundleStore(Path(sys.argv[1]), LEARNERS.__getitem__)
model, encoder, matrix = a_model(int(sys.argv[2]))
"""


def start(root: Path, rounds: int, code: str, failpoint: str = "") -> "subprocess.Popen[bytes]":
    """A process that runs ``code`` with a store, and a model of so many rounds."""
    text = WRITE.format(unit=str(Path(__file__).parents[1] / "unit")) + code
    environment = {**os.environ, "TIDEMILL_FAILPOINT": failpoint}
    return subprocess.Popen(
        [sys.executable, "-c", text, str(root), str(rounds)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def written(root: Path, rounds: int = 5, failpoint: str = "") -> str:
    """The hash that a process of its own wrote, empty where it was killed."""
    output, _ = start(root, rounds, "print(store.write(model, encoder, CARD, matrix))", failpoint).communicate()
    return output.decode().strip()


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", LEARNERS.__getitem__)


def reseal(store: BundleStore, bundle: str, file: str, data: bytes) -> str:
    """What somebody who knows the format would do: another file under recomputed hashes."""
    folder = store.root / bundle
    manifest = parse_manifest(bundle, (folder / MANIFEST).read_bytes())
    (folder / file).write_bytes(data)
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest, files))
    name = address({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    folder.rename(store.root / name)
    return name


def test_a_writer_killed_before_the_rename_leaves_no_bundle(store: BundleStore) -> None:
    """The next writer removes what is left of it."""
    assert written(store.root, failpoint="bundle.written") == ""
    assert store.bundles() == []
    assert len([path for path in store.root.iterdir() if path.is_dir()]) == 1
    bundle = written(store.root)
    store.verify(bundle)
    assert sorted(path.name for path in store.root.iterdir()) == sorted([".lock", bundle])


def test_a_writer_killed_after_the_rename_leaves_a_whole_bundle(store: BundleStore) -> None:
    """Which the same write, tried again, finds."""
    assert written(store.root, failpoint="bundle.renamed") == ""
    (bundle,) = store.bundles()
    store.verify(bundle)
    assert written(store.root) == bundle


def test_a_pruner_killed_in_the_middle_leaves_no_half_bundle(store: BundleStore) -> None:
    """It was renamed away first; the next one ends the work."""
    bundle = written(store.root)
    start(store.root, 5, "store.prune([])", failpoint="bundle.removed").communicate()
    assert store.bundles() == []
    with pytest.raises(UnknownModel):
        store.load(bundle)
    assert store.prune([]) == []
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_writers_at_the_same_time_do_not_take_each_other_for_leftovers(store: BundleStore) -> None:
    """Four at once, two of them with the same content."""
    writers = [start(store.root, n, "print(store.write(model, encoder, CARD, matrix))") for n in (3, 4, 5, 5)]
    hashes = [writer.communicate()[0].decode().strip() for writer in writers]
    assert sorted(set(hashes)) == store.bundles()
    assert len(set(hashes)) == 3
    for bundle in hashes:
        store.verify(bundle)


def test_a_good_bundle_passes_the_child(store: BundleStore) -> None:
    """Bit for bit; a model that answers differently does not, even with right hashes."""
    bundle = written(store.root)
    store.try_in_child(bundle)
    other = written(store.root, rounds=6)
    model = (store.root / other / MODEL).read_bytes()
    assert store.prune([bundle]) == [other]
    stranger = reseal(store, bundle, MODEL, model)
    with pytest.raises(BundleRefused, match="golden"):
        store.try_in_child(stranger)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"left_child=", b"left_child=2000000000 "),
        (b"split_feature=", b"split_feature=1000000000 "),
        (b"num_class=1", b"num_class=1000000000"),
        (b"num_leaves=", b"num_leaves=9"),
    ],
)
def test_a_model_that_was_damaged_with_intent_kills_the_child_only(store: BundleStore, old: bytes, new: bytes) -> None:
    """LightGBM's parser checks nothing: the child may die, this process lives and refuses the bundle."""
    bundle = written(store.root)
    model = (store.root / bundle / MODEL).read_bytes()
    assert old in model
    with pytest.raises(BundleRefused):
        store.try_in_child(reseal(store, bundle, MODEL, model.replace(old, new, 1)))


def narrow(golden: dict[str, Any]) -> Any:
    return golden | {"rows": [row[:-1] for row in golden["rows"]]}


def ragged(golden: dict[str, Any]) -> Any:
    return golden | {"rows": [golden["rows"][0][:-1], *golden["rows"][1:]]}


def wordy(golden: dict[str, Any]) -> Any:
    return golden | {"answers": ["a lot"] * len(golden["answers"])}


@pytest.mark.parametrize("damage", [narrow, ragged, wordy, lambda golden: golden["rows"], lambda golden: {}])
def test_golden_rows_that_do_not_fit_the_model_are_refused(
    store: BundleStore, damage: Callable[[dict[str, Any]], Any]
) -> None:
    """Under recomputed hashes: one line by every way that loads, and the folder is free afterwards."""
    bundle = written(store.root)
    golden = msgspec.json.decode((store.root / bundle / GOLDEN).read_bytes())
    assert reseal(store, bundle, GOLDEN, msgspec.json.encode(damage(golden))) == bundle
    for way_in in (store.load, store.try_out):
        with pytest.raises(BundleRefused, match=f"^bundle {bundle}: "):
            way_in(bundle)
    assert store.prune([]) == [bundle]


def test_a_child_that_hangs_is_ended(store: BundleStore) -> None:
    """No answer in time is a no."""
    bundle = written(store.root)
    with pytest.raises(BundleRefused, match="no answer"):
        store.try_in_child(bundle, seconds=0.01)


def test_a_loader_in_another_process_keeps_its_bundle(store: BundleStore) -> None:
    """Until that process ends, by whatever means."""
    bundle = written(store.root)
    loader = start(store.root, 5, f"b = store.load({bundle!r}); print('loaded', flush=True); sys.stdin.read()")
    assert loader.stdout is not None
    assert loader.stdout.readline() == b"loaded\n"
    assert store.prune([]) == []
    loader.kill()
    loader.communicate()
    assert store.prune([]) == [bundle]
