"""The lake on a real disk: positions, refusals, maintenance, errors in our words."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from tidemill.errors import Broken, Unavailable
from tidemill.lake import COLUMNS, Lake, TableName
from tidemill.testing.full_disk import files_at_most

APP = "recorder:demo.requests:0"


def requests(start: int, count: int, partition: int = 0) -> pl.DataFrame:
    rows = [(f"r{i}", partition, i, i, i, b"%d" % i) for i in range(start, start + count)]
    return pl.DataFrame(rows, schema=COLUMNS["requests"], orient="row")


def observations(numbers: list[int]) -> pl.DataFrame:
    rows: list[Any] = [(n, f"r{n}", 0, n, b"{}", "1", 0, 0, 0, 1, "abc", []) for n in numbers]
    return pl.DataFrame(rows, schema=COLUMNS["observations"], orient="row")


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    lake = Lake(tmp_path / "lake", compact_every=10, retention_seconds=0)
    yield lake
    lake.close()


def test_a_table_that_does_not_exist_is_empty(lake: Lake) -> None:
    """With its columns; nothing is created by reading."""
    for table, columns in COLUMNS.items():
        assert lake.read(lake.scan(table)).schema == pl.Schema(columns)
        assert (lake.version(table), lake.count(table), lake.position(table, APP)) == (-1, 0, None)
    assert lake.observations().height == 0


@pytest.mark.parametrize("table", COLUMNS)
def test_every_table_keeps_its_columns_through_empty_values(lake: Lake, table: TableName) -> None:
    """Nulls, empty lists and empty frames leave the types as they are written down."""
    kinds = COLUMNS[table]
    nothing = pl.DataFrame(
        {name: [[] if kind == pl.List(pl.Float64) else None] for name, kind in kinds.items()}, schema=kinds
    )
    lake.append(table, nothing, {"x": 1})
    lake.append(table, pl.DataFrame(schema=kinds), {"x": 2})
    lake.append(table, nothing, {"x": 3})
    assert lake.read(lake.scan(table)).schema == pl.Schema(kinds)
    assert lake.count(table) == 2


def test_rows_and_positions_are_one_commit(lake: Lake, tmp_path: Path) -> None:
    """Another process sees both or none."""
    lake.append("requests", requests(0, 5), {APP: 5, "other": 1})
    lake.append("requests", requests(5, 5), {APP: 10})
    other = Lake(tmp_path / "lake")
    assert other.positions("requests", [APP, "other", "nobody"]) == {APP: 10, "other": 1}
    assert other.read(other.scan("requests")).sort("offset").equals(requests(0, 10))


@pytest.mark.parametrize("position", [4, 5])
def test_a_position_that_was_passed_is_refused(lake: Lake, position: int) -> None:
    """Nothing is written, and the next right one is taken."""
    lake.append("requests", requests(0, 5), {APP: 5})
    with pytest.raises(Broken, match="stands at 5"):
        lake.append("requests", requests(0, 5), {APP: position})
    lake.append("requests", requests(5, 1), {APP: 6})
    assert lake.count("requests") == 6


def test_a_table_that_was_removed_under_its_writer_stops_it(lake: Lake, tmp_path: Path) -> None:
    """Going on would leave a table without a beginning; a new start makes it anew."""
    lake.append("requests", requests(0, 5), {APP: 5})
    shutil.rmtree(tmp_path / "lake")
    with pytest.raises(Broken, match="was removed"):
        lake.append("requests", requests(5, 5), {APP: 10})
    lake.close()
    lake.append("requests", requests(0, 5), {APP: 5})
    assert lake.count("requests") == 5


def test_two_writers_never_coexist(lake: Lake, tmp_path: Path) -> None:
    """The second is told; once the first has closed it may write."""
    lake.append("requests", requests(0, 1), {APP: 1})
    second = Lake(tmp_path / "lake")
    assert not second.hold("requests")
    with pytest.raises(Unavailable, match="another process writes it"):
        second.append("requests", requests(1, 1), {APP: 2})
    lake.close()
    second.append("requests", requests(1, 1), {APP: 2})
    second.close()
    assert second.count("requests") == 2


def test_the_lock_of_a_killed_writer_is_free(lake: Lake, tmp_path: Path) -> None:
    """The kernel lets go of it."""
    code = "import sys,os,signal; from pathlib import Path; from tidemill.lake import Lake; "
    code += "assert Lake(Path(sys.argv[1])).hold('requests') or True; os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lake")], check=False)
    assert lake.hold("requests")


def test_a_zombie_that_checked_before_is_refused(lake: Lake, tmp_path: Path) -> None:
    """Even without the lock: it commits with the handle it has read with."""
    lake.append("requests", requests(0, 5), {APP: 5})
    zombie = lake._writers["requests"]
    os.remove(tmp_path / "lake" / "requests.lock")
    second = Lake(tmp_path / "lake")
    second.append("requests", requests(5, 5), {APP: 10})
    assert zombie.transaction_version(APP) == 5
    with pytest.raises(Broken, match="somebody else"):
        lake.append("requests", requests(5, 5), {APP: 10})
    second.close()
    assert lake.count("requests") == 10


def test_a_scan_reads_only_what_is_new(lake: Lake) -> None:
    """By partition; files that only hold older rows are not opened."""
    for partition in (0, 1):
        for start in range(0, 50, 10):
            lake.append("requests", requests(start, 10, partition), {f"app{partition}": start + 10})
    found = lake.read(lake.scan("requests", {0: 45, 1: 50}))
    assert sorted(zip(found["partition"], found["offset"], strict=True)) == [(0, i) for i in range(45, 50)]
    assert len(lake._files("requests", {0: 45, 1: 50})) == 1
    assert lake.read(lake.scan("requests", {0: 48})).height == 52


def test_maintenance_keeps_the_folder_small_and_the_rows_whole(lake: Lake, tmp_path: Path) -> None:
    """After 300 commits: some files and log entries instead of hundreds, the same rows and positions."""
    for i in range(300):
        lake.append("requests", requests(i * 3, 3), {APP: i * 3 + 3})
        lake.maintain("requests")
    time.sleep(1.1)  # log entries age by whole seconds of file times
    while not lake.maintain("requests"):
        i += 1
        lake.append("requests", requests(i * 3, 3), {APP: i * 3 + 3})
    rows = (i + 1) * 3
    folder = tmp_path / "lake" / "requests"
    assert len(list(folder.glob("*.parquet"))) <= 12
    assert len(list((folder / "_delta_log").iterdir())) <= 12
    fresh = Lake(tmp_path / "lake")
    assert fresh.position("requests", APP) == rows
    assert fresh.read(fresh.scan("requests")).sort("offset").equals(requests(0, rows))


def test_orphans_of_a_killed_writer_are_swept(lake: Lake, tmp_path: Path) -> None:
    """A file that no commit names goes at the next maintenance."""
    lake.append("requests", requests(0, 1), {APP: 1})
    orphan = tmp_path / "lake" / "requests" / "part-orphan.parquet"
    requests(0, 1).write_parquet(orphan)
    os.utime(orphan, (0, 0))
    for i in range(1, 12):
        lake.append("requests", requests(i, 1), {APP: i + 1})
        lake.maintain("requests")
    assert not orphan.exists()


def test_a_reader_follows_through_maintenance_and_a_new_table(lake: Lake, tmp_path: Path) -> None:
    """One that looked before a compaction, a clean-up of the log, or a deletion sees what is there now."""
    reader = Lake(tmp_path / "lake")
    for i in range(25):
        lake.append("requests", requests(i, 1), {APP: i + 1})
        lake.maintain("requests")
        assert reader.count("requests") == i + 1
    lake.close()
    shutil.rmtree(tmp_path / "lake" / "requests")
    assert reader.count("requests") == 0
    lake.append("requests", requests(0, 1), {APP: 1})
    assert (reader.count("requests"), reader.position("requests", APP)) == (1, 1)


def test_observations_come_in_order_and_complete(lake: Lake) -> None:
    """A prefix is the same for ever; one that is not whole is an error."""
    lake.append("observations", observations([0, 1, 2]), {"monitor:requests:0": 3})
    lake.append("observations", observations([3, 4]), {"monitor:requests:0": 5})
    assert lake.observations(4)["number"].to_list() == [0, 1, 2, 3]
    assert lake.observations()["number"].to_list() == [0, 1, 2, 3, 4]
    assert lake.observations(0).height == 0
    with pytest.raises(Unavailable, match="5 of the 6"):
        lake.observations(6)
    lake.append("observations", observations([4]), {"monitor:requests:0": 6})
    with pytest.raises(Broken, match="numbers"):
        lake.observations()


def test_rows_of_another_shape_are_refused(lake: Lake) -> None:
    """Before anything is written."""
    with pytest.raises(Broken, match="another shape"):
        lake.append("requests", requests(0, 1).drop("value"), {APP: 1})
    assert lake.version("requests") == -1


def test_what_the_disk_says_is_one_line_of_ours(lake: Lake, tmp_path: Path) -> None:
    """A folder that cannot be made is Unavailable, a damaged log is Broken and says how to mend it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="lake table requests"):
        Lake(tmp_path / "file").hold("requests")
    lake.append("requests", requests(0, 1), {APP: 1})
    entry = tmp_path / "lake" / "requests" / "_delta_log" / f"{1:020}.json"
    entry.write_bytes(entry.read_bytes()[:40])
    with pytest.raises(Broken, match="rebuilt from the log") as caught:
        Lake(tmp_path / "lake").count("requests")
    assert "\n" not in str(caught.value)


def test_a_file_of_a_table_that_is_damaged_or_missing_is_told_with_what_mends_it(lake: Lake, tmp_path: Path) -> None:
    """Damage is final; a file may only have been swept under a slow reader, who looks again."""
    lake.append("requests", requests(0, 1), {APP: 1})
    (file,) = (tmp_path / "lake" / "requests").glob("*.parquet")
    for content in (file.read_bytes()[:50], bytes(range(256)) * 4):
        file.write_bytes(content)
        with pytest.raises(Broken, match="damaged; delete its folder") as caught:
            lake.read(lake.scan("requests"))
        assert str(caught.value).isprintable()
    file.unlink()
    with pytest.raises(Unavailable, match=rf"{file.name} of table requests is missing; where it stays away, delete"):
        lake.read(lake.scan("requests"))


@pytest.mark.parametrize("count", [500, 0], ids=["rows", "only a position"])
def test_a_disk_that_takes_no_more_is_waited_for(lake: Lake, count: int) -> None:
    """One plain line, whether the rows or the commit do not fit; nothing was written, and with room it goes on."""
    lake.append("requests", requests(0, 1), {APP: 1})
    with files_at_most(100), pytest.raises(Unavailable, match=r"^lake table requests: .*\(os error 27\)$") as caught:
        lake.append("requests", requests(1, count), {APP: 501})
    assert str(caught.value).isprintable()
    assert lake.position("requests", APP) == 1
    lake.append("requests", requests(1, count), {APP: 501})
    assert lake.read(lake.scan("requests")).sort("offset").equals(requests(0, 1 + count))


def test_a_commit_that_a_power_cut_emptied_never_was(lake: Lake, tmp_path: Path) -> None:
    """The position is the one before, so the rows are written again."""
    lake.append("requests", requests(0, 1), {APP: 1})
    lake.append("requests", requests(1, 1), {APP: 2})
    lake.close()
    (tmp_path / "lake" / "requests" / "_delta_log" / f"{2:020}.json").write_bytes(b"")
    assert lake.position("requests", APP) == 1
    lake.append("requests", requests(1, 1), {APP: 2})
    assert lake.read(lake.scan("requests")).sort("offset").equals(requests(0, 2))


def test_other_tools_can_read_the_tables(lake: Lake, tmp_path: Path) -> None:
    """They are plain Delta tables."""
    lake.append("requests", requests(0, 3), {APP: 3})
    table = DeltaTable(str(tmp_path / "lake" / "requests"))
    assert pl.scan_delta(table).collect().height == 3
