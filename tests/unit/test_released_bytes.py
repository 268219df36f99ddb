"""Bytes that a released version wrote load for ever: a log, the messages in it, a bundle."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidemill.bundles import BundleStore
from tidemill.core.decoding import Decoder
from tidemill.core.outcomes import decode_outcome
from tidemill.learners.lightgbm import LightGBM
from tidemill.log.base import Message, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check
from tidemill.messages import Event, JournalEntry, ModelVersion, Prediction, Retrain, Topics, Trial

TOPICS = Topics.of("old")
RELEASES = sorted(path.name for path in (Path(__file__).parents[1] / "data").iterdir() if path.name[0].isdigit())


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what the version wrote: opening a log writes locks beside it."""
    return Path(shutil.copytree(Path(__file__).parents[1] / "data" / request.param, tmp_path / request.param))


def test_an_old_log_opens_and_goes_on(release: Path) -> None:
    """Its records, positions and checksums are good, and it takes new records."""
    log = SqliteLog(release / "log")
    assert [record.key for record in read_all(log, TOPICS.requests)] == [b"r-1", b"r-2"]
    assert read_all(log, TOPICS.requests)[0].headers == (("time", b"1764000000000"),)
    assert log.committed("predictor") == {(TOPICS.requests, 0): 1}
    log.append([Message(TOPICS.requests, b"{}", b"r-3")])
    assert log.bounds(TOPICS.requests) == {0: (0, 3)}
    log.close()
    assert check(release / "log").problems == []


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        ("predictions", Prediction),
        ("models", ModelVersion),
        ("retrain", Retrain),
        ("trials", Trial),
        ("journal", JournalEntry),
        ("events", Event),
    ],
)
def test_old_messages_load(release: Path, topic: str, kind: type[msgspec.Struct]) -> None:
    """Every message that was written is one of today's."""
    log = SqliteLog(release / "log")
    (record,) = read_all(log, getattr(TOPICS, topic))
    assert isinstance(msgspec.json.decode(record.value, type=kind), kind)
    log.close()


def test_an_old_bundle_answers_as_it_did(release: Path) -> None:
    """It is whole; the golden rows come out bit for bit, and an old request and outcome are read."""
    store = BundleStore(release / "bundles", lambda name: LightGBM())
    (name,) = store.bundles()
    log = SqliteLog(release / "log")
    with store.load(name) as bundle:
        assert np.array_equal(bundle.model.predict(bundle.golden.matrix), bundle.golden.answers)
        values = [record.value for record in read_all(log, TOPICS.requests)]
        encoded = bundle.encoder.encode(Decoder(bundle.schema).decode(values).columns)
        assert encoded.matrix[:, 0].tolist() == [39.0, 60.0]
        (outcome,) = read_all(log, TOPICS.outcomes)
        assert decode_outcome(outcome.key, outcome.value, bundle.schema).outcome == "yes"
    log.close()
