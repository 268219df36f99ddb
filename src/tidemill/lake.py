"""The lake: facts as Delta tables, each row written once, with the position it was read from in the same commit.

A table has one writer at a time (a lock file beside it) and any number of readers. A writer's position is a Delta
application transaction: Delta records those but does not enforce them, so ``append`` reads before it writes and commits
with the handle it has read with: of two writers that read the same position one is refused.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import polars as pl
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.schema import ArrayType, PrimitiveType

from tidemill.errors import Broken, Unavailable
from tidemill.failpoints import failpoint

TableName = Literal["requests", "predictions", "outcomes", "dead_letters", "observations", "looks"]

_place = {"partition": pl.Int32, "offset": pl.Int64, "time_ms": pl.Int64}
COLUMNS: dict[TableName, dict[str, Any]] = {
    "requests": {"request_id": pl.String, **_place, "event_at": pl.Int64, "value": pl.Binary},
    "predictions": {"request_id": pl.String, **_place, "version": pl.Int64, "bundle": pl.String, "value": pl.Binary},
    "outcomes": {"request_id": pl.String, **_place, "outcome": pl.String, "outcome_at": pl.Int64},
    "dead_letters": {
        **_place,
        "topic": pl.String,
        "source_partition": pl.Int32,
        "source_offset": pl.Int64,
        "role": pl.String,
        "reason": pl.String,
        "field": pl.String,
        "detail": pl.String,
        "key": pl.Binary,
        "value": pl.Binary,
    },
    "observations": {
        "number": pl.Int64,
        "request_id": pl.String,
        "request_partition": pl.Int32,
        "request_offset": pl.Int64,
        "features": pl.Binary,
        "outcome": pl.String,
        "event_at": pl.Int64,
        "requested_at": pl.Int64,
        "outcome_at": pl.Int64,
        "version": pl.Int64,
        "bundle": pl.String,
        "scores": pl.List(pl.Float64),
    },
    "looks": {"number": pl.Int64, "kind": pl.String, "at": pl.Int64, "bundle": pl.String, "value": pl.Binary},
}
"""Every table's columns. Written down, never inferred: an empty list would be stored as a column of nulls for ever."""

_delta_types: dict[Any, PrimitiveType | ArrayType] = {
    pl.String: PrimitiveType("string"),
    pl.Int32: PrimitiveType("integer"),
    pl.Int64: PrimitiveType("long"),
    pl.Binary: PrimitiveType("binary"),
    pl.List(pl.Float64): ArrayType(PrimitiveType("double")),
}

_SPAN = ("min.partition", "max.partition", "min.offset", "max.offset")

RETENTION_SECONDS = 300
"""How long a file that compaction has replaced stays for those who still read it. At a commit a second that is some 350
small files a table; reading a million observations takes seconds."""

_FILE_BYTES = 32 << 20  # a compaction rewrites the last file until it is so large
_writing = WriterProperties(compression="ZSTD", compression_level=3, max_row_group_size=20_000)
_no_hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


class Lake:
    """The tables under ``root``. Used by one thread; readers in other processes see whole commits only."""

    def __init__(self, root: Path, compact_every: int = 50, retention_seconds: int = RETENTION_SECONDS) -> None:
        self._root = root
        self._compact_every = compact_every
        self._retention = f"interval {retention_seconds} seconds"
        self._locks: dict[TableName, IO[bytes]] = {}
        self._writers: dict[TableName, DeltaTable] = {}
        self._readers: dict[TableName, DeltaTable] = {}

    def folder(self) -> Path:
        """Where the tables are; a role may have files without names there."""
        with _our_errors("the lake"):
            self._root.mkdir(parents=True, exist_ok=True)
        return self._root

    # -- writing

    def hold(self, table: TableName) -> bool:
        """Become the table's writer until ``close``; False while another process (or ``Lake``) is."""
        if table in self._locks:
            return True
        with _our_errors(f"lake table {table}"):
            self._root.mkdir(parents=True, exist_ok=True)
            lock = open(self._root / f"{table}.lock", "ab")  # noqa: SIM115 (kept until close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._locks[table] = lock
        return True

    def append(self, table: TableName, frame: pl.DataFrame, positions: Mapping[str, int]) -> None:
        """Add the rows and set the positions (application -> the next offset it will read) in one commit; on disk when it
        returns. Without rows only the positions are set.

        Raises ``Broken`` where a position is not beyond the stored one (nothing is written), ``Unavailable`` where another
        process writes the table or the disk refuses. After any error the stored positions say whether it happened.
        """
        rows = _fit(table, frame)
        handle = self._writer(table)
        if not self._log_file(table, handle.version()).exists():
            raise Broken(f"lake table {table} was removed while it was written; start again to rebuild it")
        for app, position in positions.items():
            stored = _stands_at(table, handle, app)
            if stored is not None and stored >= position:
                raise Broken(f"lake table {table}: {app} stands at {stored} already, {position} would be written twice")
        failpoint("lake.checked")
        with _our_errors(f"lake table {table}", lambda: self._writers.pop(table, None)):
            write_deltalake(
                handle,
                rows,
                mode="append",
                writer_properties=_writing,
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(app, position) for app, position in positions.items()]
                ),
                post_commithook_properties=_no_hooks,
            )
            failpoint("lake.written")
            self._sync(table, handle.version())

    def maintain(self, table: TableName) -> bool:
        """Once ``compact_every`` commits were made since the last time: merge small files, write a checkpoint, drop old log
        entries and files that nobody has needed for the retention. Returns whether it did.
        """
        handle = self._writer(table)
        if handle.version() - self._checkpointed(table) < self._compact_every:
            return False
        with _our_errors(f"lake table {table}", lambda: self._writers.pop(table, None)):
            handle.optimize.compact(
                target_size=_FILE_BYTES, writer_properties=_writing, post_commithook_properties=_no_hooks
            )
            self._sync(table, handle.version())
            failpoint("lake.compacted")
            handle.vacuum(dry_run=False, full=True, post_commithook_properties=_no_hooks)
            handle.update_incremental()
            handle.create_checkpoint()
            self._sync_checkpoint(table)
            failpoint("lake.checkpointed")
            handle.cleanup_metadata()
        return True

    # -- reading

    def version(self, table: TableName) -> int:
        """The number of the table's newest commit, -1 without a table. One file look-up where nothing is new."""
        handle = self._reader(table)
        return -1 if handle is None else handle.version()

    def position(self, table: TableName, app: str) -> int | None:
        """Where the application stands in this table, None if it never wrote."""
        handle = self._reader(table)
        return None if handle is None else _stands_at(table, handle, app)

    def positions(self, table: TableName, apps: Iterable[str]) -> dict[str, int]:
        """The same for several, without those that never wrote."""
        found = {app: self.position(table, app) for app in apps}
        return {app: position for app, position in found.items() if position is not None}

    def count(self, table: TableName) -> int:
        """How many rows the table has; from the log, without reading them."""
        handle = self._reader(table)
        with _our_errors(f"lake table {table}"):
            return 0 if handle is None else int(handle.count())

    def scan(
        self, table: TableName, after: Mapping[int, int] | None = None, until: Mapping[int, int] | None = None
    ) -> pl.LazyFrame:
        """The table as it is now, in no order; collect it within ``RETENTION_SECONDS``.

        With ``after`` (partition -> offset): rows from these offsets on, and all of other partitions. With ``until``: rows
        before these offsets, and none of other partitions. Files that only hold others are not opened.
        """
        columns = COLUMNS[table]
        files = self._files(table, after, until)
        if not files:
            return pl.LazyFrame(schema=columns)
        rows = pl.scan_parquet(files, schema=columns, glob=False)
        if after:
            rows = rows.filter(_beyond(after))
        return rows if until is None else rows.filter(before(until))

    def spans(self, table: TableName) -> list[tuple[int, int, int, int]]:
        """Of each file with rows: its lowest and highest partition, its lowest and highest offset."""
        handle = self._reader(table)
        if handle is None:
            return []
        files = pl.DataFrame(handle.get_add_actions(flatten=True))
        return files.select(_SPAN).drop_nulls().rows() if set(_SPAN) <= set(files.columns) else []

    def read(self, rows: pl.LazyFrame) -> pl.DataFrame:
        """Collect a scan; what the disk says becomes ``Unavailable``."""
        with _our_errors("the lake"):
            return rows.collect()

    def observations(self, limit: int | None = None) -> pl.DataFrame:
        """Observations 0 to ``limit`` - 1, in order; all without a limit.

        Raises ``Unavailable`` where there are fewer, ``Broken`` where a number is missing or there twice.
        """
        rows = self.scan("observations")
        found = self.read(rows if limit is None else rows.filter(pl.col("number") < limit)).sort("number")
        if limit is not None and found.height < limit:
            raise Unavailable(f"lake table observations has {found.height} of the {limit} rows that are asked for")
        if found.height and not (found["number"] == pl.int_range(found.height, eager=True)).all():
            raise Broken("lake table observations: its numbers are not 0, 1, 2 ...")
        return found

    def close(self) -> None:
        """Let others write."""
        self._writers.clear()
        self._readers.clear()
        while self._locks:
            self._locks.popitem()[1].close()

    # -- inside

    def _writer(self, table: TableName) -> DeltaTable:
        if not self.hold(table):
            raise Unavailable(f"lake table {table}: another process writes it (lock {self._root / table}.lock)")
        if table not in self._writers:
            with _our_errors(f"lake table {table}"):
                self._writers[table] = _open(self._root / table) or self._create(table)
        return self._writers[table]

    def _create(self, table: TableName) -> DeltaTable:
        statistics = {"observations": ["number", "requested_at"], "looks": ["number"]}.get(table, list(_place))
        return DeltaTable.create(
            str(self._root / table),
            _delta_schema(table),
            configuration={
                "delta.logRetentionDuration": self._retention,
                "delta.deletedFileRetentionDuration": self._retention,
                "delta.enableExpiredLogCleanup": "false",
                "delta.checkpointInterval": "1000000000",
                "delta.dataSkippingStatsColumns": ",".join(statistics),
            },
        )

    def _reader(self, table: TableName) -> DeltaTable | None:
        handle = self._readers.pop(table, None)
        with _our_errors(f"lake table {table}"):
            if handle is None or not self._refreshed(table, handle):
                handle = _open(self._root / table)
        if handle is not None:
            self._readers[table] = handle
        return handle

    def _refreshed(self, table: TableName, handle: DeltaTable) -> bool:
        """Bring the handle to the newest commit; False where the table is another one now, or was left too far behind."""
        if not self._log_file(table, handle.version()).exists():
            return False
        if self._log_file(table, handle.version() + 1).exists():
            try:
                handle.update_incremental()
            except DeltaError:
                return False
        return True

    def _files(
        self, table: TableName, after: Mapping[int, int] | None, until: Mapping[int, int] | None = None
    ) -> list[Path]:
        handle = self._reader(table)
        if handle is None:
            return []
        files = pl.DataFrame(handle.get_add_actions(flatten=True))
        if (after or until) and files.height:
            low_partition, high_partition, low, high = map(pl.col, _SPAN)
            kept = pl.lit(True)
            if after:
                first = low_partition.replace_strict(dict(after), default=0, return_dtype=pl.Int64)
                kept &= (low_partition != high_partition) | (high >= first)
            if until:
                kept &= low < max(until.values())
            files = files.filter(kept.fill_null(True))
        return [self._root / table / path for path in files["path"]]

    def _checkpointed(self, table: TableName) -> int:
        try:
            return int(msgspec.json.decode((self._root / table / "_delta_log" / "_last_checkpoint").read_bytes())["version"])
        except (OSError, ValueError, KeyError):
            return 0

    def _log_file(self, table: TableName, version: int) -> Path:
        return self._root / table / "_delta_log" / f"{version:020}.json"

    def _sync(self, table: TableName, version: int) -> None:
        """Force a commit to the disk; the library never does."""
        entry = self._log_file(table, version)
        for line in entry.read_bytes().splitlines():
            action = msgspec.json.decode(line).get("add")
            if action:
                _force(self._root / table / action["path"])
        _force(entry)
        self._sync_folders(table)

    def _sync_checkpoint(self, table: TableName) -> None:
        """Before the log entries that it stands for are deleted."""
        log = self._root / table / "_delta_log"
        for path in (*log.glob("*.checkpoint*.parquet"), log / "_last_checkpoint"):
            _force(path)
        self._sync_folders(table)

    def _sync_folders(self, table: TableName) -> None:
        _force(self._root / table / "_delta_log")
        _force(self._root / table)


def _open(path: Path) -> DeltaTable | None:
    """The table at its newest commit. The first try may meet the moment in which maintenance exchanges the checkpoint."""
    for last in (False, True):
        try:
            return DeltaTable(str(path)) if (path / "_delta_log").is_dir() else None
        except TableNotFoundError:
            return None
        except DeltaError:
            if last:
                raise
    return None


def _stands_at(table: TableName, handle: DeltaTable, app: str) -> int | None:
    with _our_errors(f"lake table {table}"):
        return handle.transaction_version(app)


def _fit(table: TableName, frame: pl.DataFrame) -> pl.DataFrame:
    if frame.schema != pl.Schema(COLUMNS[table]):
        raise Broken(f"lake table {table}: rows of another shape, {dict(frame.schema)}")
    return frame


def _delta_schema(table: TableName) -> DeltaSchema:
    return DeltaSchema([Field(name, _delta_types[kind]) for name, kind in COLUMNS[table].items()])


def _beyond(after: Mapping[int, int]) -> pl.Expr:
    known = pl.any_horizontal(
        *((pl.col("partition") == partition) & (pl.col("offset") >= offset) for partition, offset in after.items())
    )
    return known | ~pl.col("partition").is_in(list(after))


def before(positions: Mapping[int, int]) -> pl.Expr:
    """Whether a row stands before the position of its partition; without one it does not."""
    return pl.any_horizontal(
        pl.lit(False),
        *((pl.col("partition") == partition) & (pl.col("offset") < offset) for partition, offset in positions.items()),
    )


def _force(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _our_errors(place: str, undo: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """The outside's errors as ours; ``undo`` drops what can no longer be trusted."""
    try:
        yield
    except CommitFailedError as error:
        undo()
        raise Broken(f"{place}: somebody else wrote it at the same time ({_line(error)})") from error
    except OSError as error:
        undo()
        raise Unavailable(f"{place}: {_missing(error) or _line(error)}") from error
    except (DeltaError, pl.exceptions.PolarsError) as error:
        undo()
        if "os error" in str(error) or "LocalFileSystem" in str(error):
            raise Unavailable(f"{place}: {_line(error)}") from error
        raise Broken(f"{place}: damaged; delete its folder and it is rebuilt from the log ({_line(error)})") from error


_DATA_FILE = re.compile(r"([^/\s_][^/\s]*)/([^/\s]+\.parquet)\b")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _missing(error: OSError) -> str:
    """What to do where it is a table's data file that is not there; else nothing."""
    found = _DATA_FILE.search(str(error)) if isinstance(error, FileNotFoundError) else None
    if found is None:
        return ""
    table, file = found.groups()
    return (
        f"the file {file} of table {table} is missing; where it stays away, delete the folder {table}, and it is rebuilt "
        "from the log"
    )


def _line(error: Exception) -> str:
    """The error without the library's colours, the stack that it may put behind, or a file's own bytes."""
    line = " ".join(_COLOUR.sub("", str(error)).split(" 0: ")[0].split())[:300]
    return "".join(letter if letter.isprintable() else "?" for letter in line)
