"""What is new in a lake table, in offset order, without reading what is old."""

from collections.abc import Mapping
from typing import Literal

import polars as pl

from tidemill.lake import Lake

Feed = Literal["requests", "predictions", "outcomes"]
"""The recorder's tables that are joined."""


class Tail:
    """A reader's place in one of the recorder's tables. ``positions``: partition -> the offset of the next row to read."""

    def __init__(self, lake: Lake, table: Feed, positions: dict[int, int]) -> None:
        self.table = table
        self.positions = positions
        self.newest_ms = 0
        self._lake = lake
        self._ended_at = -2

    def ended(self) -> bool:
        """Whether nothing was added since the end was reached. One file look-up."""
        return self._lake.version(self.table) == self._ended_at

    def read(self, rows: int) -> pl.DataFrame | None:
        """The next rows, some ``rows`` of each partition, in order of partition and offset; None at the end."""
        version = self._lake.version(self.table)
        if version == self._ended_at:
            return None
        frame = next_rows(self._lake, self.table, self.positions, rows)
        if not frame.height:
            self._ended_at = version
            return None
        return frame

    def advance(self, rows: pl.DataFrame) -> None:
        """These leading rows of the last read are done."""
        for partition, offset, time_ms in rows.group_by("partition").agg(pl.col("offset", "time_ms").max()).iter_rows():
            self.positions[partition] = offset + 1
            self.newest_ms = max(self.newest_ms, time_ms)


def next_rows(lake: Lake, table: Feed, after: Mapping[int, int], rows: int) -> pl.DataFrame:
    """The table from these offsets on, some ``rows`` of each partition; empty at the end.

    Where to read is known from the files' statistics, at the same cost however long the table is. Only where they mislead
    (a stretch without rows inside a file) the offsets themselves are looked at.
    """
    frame = _from(lake, table, after, _starts(lake, table, after), rows)
    if frame.height:
        return frame
    left = lake.scan(table, after).group_by("partition").agg(pl.col("offset").min())
    return _from(lake, table, after, dict(lake.read(left).iter_rows()), rows)


def _starts(lake: Lake, table: Feed, after: Mapping[int, int]) -> dict[int, int]:
    """By partition, the offset before which nothing is left."""
    starts: dict[int, int] = {}
    for low_partition, high_partition, low, high in lake.spans(table):
        for partition in range(low_partition, high_partition + 1):
            position = after.get(partition, 0)
            if high >= position:
                starts[partition] = min(starts.get(partition, high), max(low, position))
    return starts


def _from(lake: Lake, table: Feed, after: Mapping[int, int], starts: Mapping[int, int], rows: int) -> pl.DataFrame:
    until = {partition: start + rows for partition, start in starts.items()}
    return lake.read(lake.scan(table, after, until).sort("partition", "offset"))
