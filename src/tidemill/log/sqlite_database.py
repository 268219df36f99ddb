"""The database of a SQLite log: its tables, the connections to it, and its errors in this project's words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tidemill.errors import ConfigError, LogDamaged, TidemillError, Unavailable
from tidemill.log.sqlite_folder import database_file

APPLICATION_ID = 0x74646D6C
FORMAT = 1
TABLES = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, retention_ms INTEGER, compacted INTEGER NOT NULL,
    first INTEGER NOT NULL
);
CREATE TABLE positions (
    "group" TEXT NOT NULL, topic INTEGER NOT NULL REFERENCES topics, generation INTEGER NOT NULL,
    origin INTEGER NOT NULL, committed INTEGER, PRIMARY KEY ("group", topic)
) WITHOUT ROWID;
"""


def writer(root: Path, durability: Literal["full", "normal"]) -> sqlite3.Connection:
    """The connection that writes; makes the database where there is none. Call it inside the write lock.

    Raises ``ConfigError`` for a file that is not a log of this format.
    """
    with in_our_words(root):
        db = _connect(f"{database_file(root).as_uri()}?mode=rwc")
        try:
            _make_or_check(db, root)
            db.execute(f"PRAGMA synchronous={durability}")
            # Deleted records need not be overwritten; some builds do so by default.
            db.execute("PRAGMA secure_delete=OFF")
        except BaseException:
            db.close()
            raise
    return db


def reader(root: Path, *, at_rest: bool = False) -> sqlite3.Connection:
    """A connection that only reads, and does not make what is not there; for one thread at a time.

    ``at_rest``: nobody writes meanwhile, and there is no WAL; then no right to write in the folder is needed.
    """
    with in_our_words(root):
        db = _connect(f"{database_file(root).as_uri()}?mode=ro{'&immutable=1' if at_rest else ''}")
        db.execute("PRAGMA query_only=ON")
    return db


def _connect(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, timeout=5.0, isolation_level=None, check_same_thread=False, uri=True)
    # A flipped bit can make text of bytes, which need not be UTF-8: that is for the record's checksum to find.
    db.text_factory = lambda text: text.decode(errors="surrogateescape")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("PRAGMA mmap_size=0")
    return db


def _make_or_check(db: sqlite3.Connection, root: Path) -> None:
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise ConfigError(f"{database_file(root)} is not a log: choose another folder in stream.url") from None
        raise
    if not application and not tables:
        _make(db)
    elif application != APPLICATION_ID:
        raise ConfigError(f"{database_file(root)} is a database of another program: choose another folder in stream.url")
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        raise ConfigError(f"{database_file(root)} has format {found}, this version of tidemill reads {FORMAT}")


def _make(db: sqlite3.Connection) -> None:
    # In this order: auto_vacuum cannot be changed once there is a page.
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, TABLES.split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={FORMAT}")
    db.execute("COMMIT")


@contextmanager
def in_our_words(root: Path) -> Iterator[None]:
    """Raise SQLite's errors as this project's, one line each."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, root) from error


def _translated(error: sqlite3.Error, root: Path) -> TidemillError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return LogDamaged(f"the log in {root} is damaged: {error}; `tidemill log check` says where, a backup mends it")
    if code == sqlite3.SQLITE_READONLY:
        return ConfigError(f"the log in {root} cannot be written by this user: {error}")
    if code == sqlite3.SQLITE_CANTOPEN and not database_file(root).exists():
        return ConfigError(f"there is no log in {root}")
    return Unavailable(f"the log in {root} does not answer: {error}")
