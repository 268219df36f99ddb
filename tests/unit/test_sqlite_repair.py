"""Mending a SQLite log: what is lost keeps its place, is refused where it is read, and is put aside as it was found."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidemill.errors import ConfigError, LogDamaged, Unavailable
from tidemill.log import sqlite_repair
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check
from tidemill.log.sqlite_folder import database_file
from tidemill.log.sqlite_records import Damage
from tidemill.log.sqlite_repair import repair


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The log's folder."""
    return tmp_path / "log"


@pytest.fixture
def log(root: Path) -> Iterator[SqliteLog]:
    """An open log: topic "a" has five records with keys and a header, "b" none."""
    log = SqliteLog(root)
    log.create([Topic("a"), Topic("b")])
    log.append([Message("a", b"value %d" % i, b"key %d" % i, (("header", b"x"),)) for i in range(5)])
    yield log
    log.close()


def change(root: Path, sql: str, *parameters: Any) -> None:
    """Damage a log in its table ``records_1``, which is that of topic "a"."""
    with sqlite3.connect(database_file(root)) as db:
        db.execute(sql, parameters)
    db.close()


def found_in(file: str) -> list[dict[str, Any]]:
    """The lines that were put aside."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_damaged_record_becomes_an_empty_one_in_its_place(log: SqliteLog, root: Path) -> None:
    """Offset and key stay, a header says why, the neighbours are untouched; who stopped there goes on."""
    change(root, "UPDATE records_1 SET value = ? WHERE offset = 2", b"valuf 2")
    reader = log.join("g", ["a"])
    with pytest.raises(LogDamaged, match=r"'a', offset 2\b.*`tidemill log repair`"):
        reader.poll(10, 0)
    done = repair(root)
    assert (done.mended, done.problems) == ([Damage("a", 2)], [])
    records = read_all(log, "a")
    assert [(record.offset, record.key, record.value) for record in records] == [
        (i, b"key %d" % i, b"" if i == 2 else b"value %d" % i) for i in range(5)
    ]
    assert records[2].headers == (("damaged", b"the record's checksum did not match; see quarantine/1.jsonl"),)
    assert records[2].time_ms == records[1].time_ms
    assert reader.poll(10, 0).offsets == [0, 1, 2, 3, 4]
    assert check(root).problems == []


def test_what_was_found_is_put_aside(log: SqliteLog, root: Path) -> None:
    """Bytes and all, so that a person who knows what was meant can send it again; a second repair takes another file."""
    change(root, "UPDATE records_1 SET value = ? WHERE offset = 2", b"valuf 2")
    first = repair(root)
    change(root, "UPDATE records_1 SET time = time + 1 WHERE offset = 4")
    second = repair(root)
    assert [Path(done.quarantine) for done in (first, second)] == [root / "quarantine" / f"{n}.jsonl" for n in (1, 2)]
    [line] = found_in(first.quarantine)
    assert (line["topic"], line["offset"]) == ("a", 2)
    assert {base64.b64decode(line["value"]), base64.b64decode(line["key"])} == {b"valuf 2", b"key 2"}
    assert base64.b64decode(found_in(second.quarantine)[0]["value"]) == b"value 4"


def test_missing_records_are_put_in(log: SqliteLog, root: Path) -> None:
    """In the middle, and at the end as far as a group had read; their offsets are used for nothing else."""
    reader = log.join("g", ["a"])
    reader.poll(5, 0)
    reader.commit()
    change(root, "DELETE FROM records_1 WHERE offset IN (1, 2, 4)")
    done = repair(root)
    assert (done.mended, done.problems) == ([Damage("a", 1, 2), Damage("a", 4, 1)], [])
    log.append([Message("a", b"next")])
    assert [record.value for record in read_all(log, "a")] == [b"value 0", b"", b"", b"value 3", b"", b"next"]
    assert reader.poll(5, 0).values == [b"next"]
    assert found_in(done.quarantine)[0] == {"topic": "a", "offset": 1, "missing": 2}


@pytest.mark.parametrize(
    "damage",
    [
        "value = 'text'",
        "value = CAST(x'ff00' AS TEXT)",
        "value = 7",
        "time = 'soon'",
        "time = 1 << 62",
        "key = NULL",
        "key = 'text'",
        "headers = x'c1'",
        "headers = 1.5",
        "checksum = 'none'",
    ],
)
def test_damage_of_any_kind_is_found_and_mended(log: SqliteLog, root: Path, damage: str) -> None:
    """A flipped bit can change a column's type, and make text that is none: all of it is a damaged record."""
    change(root, f"UPDATE records_1 SET {damage} WHERE offset = 2")
    assert "topic 'a', offset 2: the record's checksum does not match" in check(root).problems
    with pytest.raises(LogDamaged, match=r"'a', offset 2\b"):
        read_all(log, "a")
    done = repair(root)
    assert (done.mended, done.problems) == ([Damage("a", 2)], [])
    assert [record.value for record in read_all(log, "a")][2] == b""


def test_a_log_without_damage_stays_as_it_is(log: SqliteLog, root: Path) -> None:
    """Nothing is mended and no file is written, also where everything was deleted in order."""
    done = repair(root)
    assert (done.mended, done.quarantine, done.problems) == ([], "", [])
    assert not (root / "quarantine").exists()


def test_a_gap_beyond_reason_is_not_filled(log: SqliteLog, root: Path) -> None:
    """An offset that a flipped bit has thrown far off would make the log as long: it is named instead."""
    change(root, "UPDATE records_1 SET offset = 1 << 40 WHERE offset = 4")
    with pytest.raises(LogDamaged, match=r"'a', offset 4: .* too many"):
        repair(root)
    assert not (root / "quarantine").exists()


def test_nothing_is_mended_where_nothing_can_be_put_aside(
    log: SqliteLog, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is on the disk before it is replaced."""
    change(root, "UPDATE records_1 SET value = ? WHERE offset = 2", b"valuf 2")
    (root / "quarantine").write_text("in the way")
    with pytest.raises(Unavailable, match="quarantine"):
        repair(root)
    (root / "quarantine").unlink()
    assert len(check(root).problems) == 1

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlite_repair, "_mend", dies)
    with pytest.raises(KeyboardInterrupt):
        repair(root)
    monkeypatch.undo()
    assert len(check(root).problems) == 1
    assert repair(root).problems == []


def test_no_log_is_refused(tmp_path: Path) -> None:
    """It does not make one."""
    with pytest.raises(ConfigError, match="no log"):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []
