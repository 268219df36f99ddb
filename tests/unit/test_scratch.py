"""Memory on disk: what is written is read, what is released is free, and nothing has a name."""

from pathlib import Path

import numpy as np
import pytest

from tidemill.errors import Unavailable
from tidemill.roles import scratch
from tidemill.roles.scratch import Columns, Texts
from tidemill.testing.open_files import open_files


def test_columns_keep_what_they_hold_as_they_grow(tmp_path: Path) -> None:
    """Also when their pages were given back."""
    columns = Columns(tmp_path, {"flag": np.uint8, "number": np.int64, "scores": np.dtype((np.float64, (3,)))}, 100)
    columns["number"][:] = np.arange(100)
    columns["scores"][7] = (1, 2, 3)
    columns.let_go()
    columns.grow(10_000)
    assert columns["number"][:100].tolist() == list(range(100))
    assert columns["scores"][7].tolist() == [1, 2, 3]
    assert not columns["flag"].any()
    assert not columns["number"][100:].any()
    assert list(tmp_path.iterdir()) == []
    columns.close()
    assert open_files(tmp_path) == []


def test_texts_are_read_by_place_and_freed_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is larger than a file too; a file is deleted with its last text."""
    monkeypatch.setattr(scratch, "FILE_BYTES", 1000)
    texts = Texts(tmp_path)
    written = [b"%d" % i * (i % 90) for i in range(300)] + [b"x" * 5000, b""]
    places = np.concatenate([texts.write(written[start : start + 50]) for start in range(0, len(written), 50)])
    sizes = np.array([len(text) for text in written])
    assert texts.read(places, sizes) == written
    full = len(open_files(tmp_path))
    texts.release(places[100:])
    assert texts.read(places[:100], sizes[:100]) == written[:100]
    assert len(open_files(tmp_path)) < full / 2
    texts.release(places[:100])
    assert texts.read(texts.write([b"again"]), np.array([5])) == [b"again"]
    assert len(open_files(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_refuses_is_unavailable(tmp_path: Path) -> None:
    """Before anything is written over."""
    with pytest.raises(Unavailable, match="No such file"):
        Columns(tmp_path / "absent", {"number": np.int64}, 10)
    with pytest.raises(Unavailable):
        Columns(tmp_path, {"number": np.int64}, 10).grow(1 << 56)
