"""Mends a damaged SQLite log as far as it can be mended: what is lost is said to be lost, in its place.

Nothing is skipped in silence: roles stop at a damaged record. Here it becomes an empty one at the same offset, with a header
that says why, so that whoever reads it refuses it as it would any other bad record. A missing record is put in likewise.
"""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tidemill.clock import SystemClock
from tidemill.errors import ConfigError, LogDamaged, Unavailable
from tidemill.log.base import DAMAGED, Message
from tidemill.log.sqlite_check import check, refuse_others, scan
from tidemill.log.sqlite_database import in_our_words, reader
from tidemill.log.sqlite_folder import database_file, prepare_folder
from tidemill.log.sqlite_records import Damage, Table, rows_of, table_of
from tidemill.log.sqlite_store import Store

MISSING_MAX = 1_000_000
"""A longer gap is no loss of records, but an offset or a position that is wrong itself."""
NEEDED = "SELECT max(committed) FROM positions WHERE topic = ?"


class Repair(Struct, frozen=True):
    """What ``repair`` did: which places it mended, the file that has what was found there (empty where none was mended),
    and what ``check`` still finds.
    """

    root: str
    mended: list[Damage]
    quarantine: str
    problems: list[str]


class _Found(Struct, frozen=True, omit_defaults=True):
    """A line of the file: what stood at a place, bytes as base64, or how many records were missing there."""

    topic: str
    offset: int
    missing: int = 0
    time: Any = None
    key: Any = None
    value: Any = None
    headers: Any = None
    checksum: Any = None


def repair(root: Path) -> Repair:
    """Turn every damaged or missing record into an empty one with the header ``damaged``; offset and key stay.

    All in one transaction; what was found is in a file under ``quarantine`` before. May run beside roles: they go on when
    they are started again. Raises ``ConfigError`` where there is no log, or none that this user may write, ``Unavailable``
    where the disk is full, ``LogDamaged`` where the database itself is damaged, so that it cannot be read to its end.
    """
    root = root.absolute()
    if not database_file(root).is_file():
        raise ConfigError(f"there is no log in {root}")
    suspects = _suspects(root)
    mended, file = _mend_all(root, suspects) if suspects else ([], "")
    return Repair(str(root), mended, file, check(root).problems)


def _suspects(root: Path) -> list[tuple[Table, Damage]]:
    """What is damaged, found without the write lock, since looking may take minutes."""
    suspects: list[tuple[Table, Damage]] = []
    db = reader(root)
    try:
        with in_our_words(root):
            refuse_others(db, root)
            for table in [table_of(*row) for row in db.execute("SELECT id, name FROM topics ORDER BY name").fetchall()]:
                first, end = db.execute(table.bounds).fetchone()
                (needed,) = db.execute(NEEDED, (table.id,)).fetchone()
                # A group has read up to there, so there were records.
                _, found = scan(db, table, first, max(end, needed or 0))
                suspects += [(table, damage) for damage in found]
    finally:
        db.close()
    for _, damage in suspects:
        if damage.missing > MISSING_MAX:
            raise LogDamaged(f"{damage}: too many to be put in; the next offset or a group's position is wrong itself")
    return suspects


def _mend_all(root: Path, suspects: list[tuple[Table, Damage]]) -> tuple[list[Damage], str]:
    """What was mended, and the file that has what was found."""
    store = Store(prepare_folder(root), "full", SystemClock())
    try:
        with store.writing() as db:
            # Retention may have deleted some of them meanwhile.
            found = [(table, damage) for table, place in suspects for damage in _again(db, table, place)]
            if not found:
                return [], ""
            file = _quarantine(root / "quarantine", [_found(db, *one) for one in found])
            for table, damage in found:
                _mend(db, table, damage, file)
            return [damage for _, damage in found], file
    finally:
        store.close()


def _again(db: sqlite3.Connection, table: Table, place: Damage) -> list[Damage]:
    first, _ = db.execute(table.bounds).fetchone()
    _, damage = scan(db, table, max(first, place.offset), place.offset + (place.missing or 1))
    return damage


def _found(db: sqlite3.Connection, table: Table, damage: Damage) -> _Found:
    if damage.missing:
        return _Found(damage.topic, damage.offset, damage.missing)
    [row] = db.execute(table.select, (damage.offset, 1)).fetchall()
    return _Found(damage.topic, damage.offset, 0, *map(_plain, row[1:]))


def _plain(value: Any) -> Any:
    """Text, which a record has only where a type was damaged, as its bytes."""
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


def _quarantine(folder: Path, found: list[_Found]) -> str:
    """Write the lines durably, into the first name that is free; its path."""
    try:
        folder.mkdir(exist_ok=True)
        path = next(path for path in _names(folder) if not path.exists())
        with path.open("xb") as file:
            file.write(b"".join(msgspec.json.encode(one) + b"\n" for one in found))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Unavailable(f"what was found cannot be written to {folder}: {error.strerror}") from error
    return str(path)


def _names(folder: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield folder / f"{number}.jsonl"
        number += 1


def _mend(db: sqlite3.Connection, table: Table, damage: Damage, file: str) -> None:
    what = "the record was missing" if damage.missing else "the record's checksum did not match"
    text = f"{what}; see quarantine/{Path(file).name}"
    for offset in range(damage.offset, damage.offset + (damage.missing or 1)):
        [(time_ms,)] = db.execute(table.time_near, (offset,)).fetchall()
        rows = db.execute(table.select, (offset, 1)).fetchall()
        key = rows[0][2] if rows and rows[0][0] == offset and isinstance(rows[0][2], bytes) else None
        message = Message(table.topic, b"", key, ((DAMAGED, text.encode()),))
        db.executemany(table.replace, rows_of(table, offset, time_ms if isinstance(time_ms, int) else 0, [message]))
