"""Reading on in a lake table: in order, complete, and at the same cost however long it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tidemill.lake import COLUMNS, Lake
from tidemill.roles.tail import Tail, next_rows


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path / "lake", compact_every=5, retention_seconds=0)
    yield lake
    lake.close()


class Table:
    """Requests of two partitions, as a recorder writes them."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.rows: list[tuple[int, int]] = []
        self.commits = 0

    def append(self, partition: int, *offsets: int) -> None:
        self.commits += 1
        self.rows += [(partition, offset) for offset in offsets]
        rows = [(f"r{offset}", partition, offset, offset, 0, b"") for offset in offsets]
        frame = pl.DataFrame(rows, schema=COLUMNS["requests"], orient="row")
        self.lake.append("requests", frame, {"app": self.commits})
        self.lake.maintain("requests")


def read_on(lake: Lake, rows: int) -> list[list[tuple[int, int]]]:
    tail = Tail(lake, "requests", {})
    parts = []
    while (frame := tail.read(rows)) is not None:
        parts.append(frame.select("partition", "offset").rows())
        tail.advance(frame)
    assert tail.ended()
    return parts


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_everything_comes_once_and_in_order(lake: Lake, rows: int) -> None:
    """Over partitions, gaps between files and within them, and compaction."""
    table = Table(lake)
    for start in range(0, 60, 10):
        table.append(0, *range(start, start + 10))
        table.append(1, *range(100 + 2 * start, 100 + 2 * start + 5))
    table.append(0, 60, 5000, 1_000_000)
    table.append(2, 7)
    parts = read_on(lake, rows)
    assert sorted(one for part in parts for one in part) == sorted(table.rows)
    for partition in (0, 1, 2):
        offsets = [offset for part in parts for place, offset in part if place == partition]
        assert offsets == sorted(offsets)
    assert all(len([one for one in part if one[0] == partition]) <= rows for part in parts for partition in (0, 1, 2))


def test_only_the_files_that_hold_the_next_rows_are_opened(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those before nor those behind."""
    lake = Lake(lake.folder() / "other")
    table = Table(lake)
    for start in range(0, 200, 10):
        table.append(0, *range(start, start + 10))
    opened = []
    scan = pl.scan_parquet

    def counted(files: list[Path], **options: Any) -> pl.LazyFrame:
        opened.append(len(files))
        return scan(files, **options)

    monkeypatch.setattr(pl, "scan_parquet", counted)
    assert next_rows(lake, "requests", {0: 95}, 10)["offset"].to_list() == list(range(95, 105))
    assert opened == [2]
    lake.close()


def test_an_end_is_an_end_until_something_is_added(lake: Lake) -> None:
    """Also where a file's highest offset is another partition's."""
    table = Table(lake)
    for offset in range(12):  # compaction puts both partitions into one file
        table.append(0, offset)
        table.append(1, 1000 + offset)
    tail = Tail(lake, "requests", {0: 12, 1: 1012})
    assert tail.read(5) is None
    table.append(0, 12)
    frame = tail.read(5)
    assert frame is not None
    assert frame["offset"].to_list() == [12]
