"""What is new in a lake table, in offset order, without reading what is old."""

from collections.abc import Iterator

import polars as pl

from tidemill.lake import Lake, TableName


class Tail:
    """A reader's place in one of the recorder's tables. ``positions``: partition -> the offset of the next row to read."""

    def __init__(self, lake: Lake, table: TableName, positions: dict[int, int]) -> None:
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
        frame = next(chunks(self._lake, self.table, self.positions, rows), None)
        if frame is None:
            self._ended_at = version
        return frame

    def advance(self, rows: pl.DataFrame) -> None:
        """These leading rows of the last read are done."""
        for partition, offset, time_ms in rows.group_by("partition").agg(pl.col("offset", "time_ms").max()).iter_rows():
            self.positions[partition] = offset + 1
            self.newest_ms = max(self.newest_ms, time_ms)


def chunks(lake: Lake, table: TableName, after: dict[int, int], rows: int) -> Iterator[pl.DataFrame]:
    """The table from these offsets on, some ``rows`` of each partition at a time, as it was when the first was asked for."""
    new = lake.scan(table, after)
    after = dict(after)
    while True:
        left = new.filter(*(~((pl.col("partition") == p) & (pl.col("offset") < offset)) for p, offset in after.items()))
        starts = dict(lake.read(left.group_by("partition").agg(pl.col("offset").min())).iter_rows())
        if not starts:
            return
        after |= {partition: start + rows for partition, start in starts.items()}
        near = pl.any_horizontal(
            *((pl.col("partition") == partition) & (pl.col("offset") < after[partition]) for partition in starts)
        )
        yield lake.read(left.filter(near).sort("partition", "offset"))
