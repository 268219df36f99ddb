"""What a SQLite log promises beyond the contract: damage is found, files shrink, full disks and forks do no harm."""

import os
import select
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidemill.errors import Broken, ConfigError, LogDamaged, Unavailable
from tidemill.log import sqlite_wake
from tidemill.log.base import Message, Topic, read_all
from tidemill.log.sqlite import SqliteLog
from tidemill.log.sqlite_check import check
from tidemill.log.sqlite_folder import database_file, refuse_network, wal_file
from tidemill.log.sqlite_wake import Touch, pause_after, wake_file
from tidemill.testing.clock import ManualClock
from tidemill.testing.ending import ending
from tidemill.testing.full_disk import files_at_most


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The log's folder."""
    return tmp_path / "log"


@pytest.fixture
def log(root: Path) -> Iterator[SqliteLog]:
    """An open log with topics "a" and "b"."""
    log = SqliteLog(root)
    log.create([Topic("a"), Topic("b")])
    yield log
    log.close()


def flip(path: Path, marker: bytes) -> None:
    """Change one bit of the one place where the file has these bytes."""
    data = bytearray(path.read_bytes())
    assert data.count(marker) == 1
    data[data.index(marker)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("marker", [b"the value", b"the key", b"the header"])
def test_a_flipped_bit_is_found(log: SqliteLog, root: Path, marker: bytes) -> None:
    """Reading raises, naming topic and offset; the audit reports it and goes on to the end."""
    log.append(
        [Message("a", b"fine"), Message("a", b"the value", b"the key", (("the header", b""),)), Message("a", b"fine")]
    )
    log.close()
    flip(database_file(root), marker)
    log = SqliteLog(root)
    reader = log.join("g", ["a"])
    with pytest.raises(LogDamaged, match=r"'a', offset 1\b"):
        reader.poll(10, 0)
    assert reader.poll(1, 0).values == [b"fine"]
    with pytest.raises(LogDamaged, match=r"'a', offset 1\b"):
        read_all(log, "a")
    report = check(root)
    assert report.problems == ["topic 'a', offset 1: the record's checksum does not match"]
    assert [(topic.topic, topic.records) for topic in report.topics] == [("a", 3), ("b", 0)]
    log.close()


def test_records_that_are_gone_are_found(log: SqliteLog, root: Path) -> None:
    """A gap in the offsets is damage, and a position past the end is named."""
    log.append([Message("a", b"%d" % i) for i in range(5)])
    reader = log.join("g", ["a"])
    reader.poll(5, 0)
    reader.commit()
    log.close()
    with sqlite3.connect(database_file(root)) as db:
        db.execute("DELETE FROM records_1 WHERE offset IN (0, 2, 4)")
    db.close()
    assert check(root).problems == [
        "group 'g': position 5 in topic 'a' is past the end, 4",
        "topic 'a', offset 0: 1 records are missing",
        "topic 'a', offset 2: 1 records are missing",
    ]
    log = SqliteLog(root)
    with pytest.raises(LogDamaged, match="offset 0"):
        read_all(log, "a")
    with pytest.raises(Broken, match="past the end"):
        log.join("g", ["a"]).poll(5, 0)
    log.close()


def test_a_damaged_database_is_one_line(log: SqliteLog, root: Path) -> None:
    """Pages that make no sense are damage to who opens or reads the log, and a problem to the audit."""
    log.append([Message("a", os.urandom(500)) for _ in range(500)])
    log.close()
    with database_file(root).open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(100_000))

    def read() -> None:
        log = SqliteLog(root)
        try:
            read_all(log, "a")
        finally:
            log.close()

    with pytest.raises(LogDamaged, match="damaged"):
        read()
    assert check(root).problems


def test_the_audit_works_beside_an_open_log(log: SqliteLog, root: Path) -> None:
    """It sees what was committed and counts topics and groups."""
    log.append([Message("a", b"%d" % i) for i in range(2500)])
    reader = log.join("g", ["a"])
    reader.poll(1000, 0)
    reader.commit([Message("b", b"")])
    report = check(root)
    assert report.problems == []
    assert [(t.topic, t.first, t.end, t.records) for t in report.topics] == [("a", 0, 2500, 2500), ("b", 0, 1, 1)]
    assert [(g.group, g.topic, g.committed, g.lag) for g in report.groups] == [("g", "a", 1000, 1500)]
    assert report.sqlite_version == sqlite3.sqlite_version


def test_the_audit_of_no_log_is_refused(tmp_path: Path) -> None:
    """It does not make one."""
    with pytest.raises(ConfigError, match="no log"):
        check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def without_rights(work: Callable[[], object]) -> str:
    """What the work raises, for a user who may only read what is not his (root may do anything)."""
    if os.getuid():
        return raised_by(work)
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        os.write(target, raised_by(work).encode())
        os._exit(0)
    os.close(target)
    os.waitpid(child, 0)
    with open(source) as said:
        return said.read()


def raised_by(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_the_audit_needs_no_right_to_write() -> None:
    """A copy on a read-only disk, or a log of another user, can be checked, whether it was closed or is in use."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "log"
        log = SqliteLog(root)
        log.create([Topic("a")])
        log.append([Message("a", b"%d" % i) for i in range(10)])
        Path(name).chmod(0o755)

        def work() -> None:
            report = check(root)
            assert (report.problems, report.topics[0].records) == ([], 10)

        in_use = without_rights(work)
        log.close()
        root.chmod(0o555)
        closed = without_rights(work)
        assert without_rights((root / "new").touch).startswith("PermissionError")
        root.chmod(0o755)
    assert (in_use, closed) == ("", "")


def test_retention_shrinks_the_file_and_never_reuses_an_offset(root: Path) -> None:
    """Old records go, and their pages; what has no retention stays; offsets go on even where no record is left."""
    clock = ManualClock()
    log = SqliteLog(root, "normal", clock=clock)
    log.create([Topic("old", retention_seconds=60), Topic("kept")])
    log.append([Message("kept", b"kept")])
    for _ in range(15):
        log.append([Message("old", b"x" * 2000) for _ in range(1000)])
    log.close()
    full = database_file(root).stat().st_size
    log = SqliteLog(root, "normal", clock=clock)
    clock.advance(61)
    for _ in range(400):
        log.append([Message("kept", b"")])
        clock.advance(1)
    assert log.bounds("old") == {0: (15_000, 15_000)}
    assert read_all(log, "old") == []
    log.close()
    assert database_file(root).stat().st_size < full / 3
    log = SqliteLog(root, "normal", clock=clock)
    log.append([Message("old", b"next")])
    assert [record.offset for record in read_all(log, "old")] == [15_000]
    assert read_all(log, "kept")[0].value == b"kept"
    assert check(root).problems == []
    log.close()


def test_a_new_retention_counts_from_now_on(root: Path) -> None:
    """Making an existing topic with another retention changes it, and keeps its records until they are too old."""
    clock = ManualClock()
    log = SqliteLog(root, clock=clock)
    log.create([Topic("a"), Topic("b")])
    log.append([Message("a", b"old")])
    log.create([Topic("a", retention_seconds=60), Topic("b")])
    assert [record.value for record in read_all(log, "a")] == [b"old"]
    clock.advance(1000)
    log.append([Message("b", b"")])
    assert read_all(log, "a") == []
    log.close()


def test_retention_waits_for_groups(root: Path) -> None:
    """What a group has still to read stays, however old; once it has committed, it goes."""
    clock = ManualClock()
    log = SqliteLog(root, clock=clock)
    log.create([Topic("a", retention_seconds=60), Topic("b")])
    log.append([Message("a", b"%d" % i) for i in range(10)])
    reader = log.join("g", ["a"])
    reader.poll(4, 0)
    reader.commit()
    clock.advance(1000)
    log.append([Message("b", b"")])
    assert log.bounds("a") == {0: (4, 10)}
    assert len(reader.poll(100, 0)) == 6
    reader.commit()
    clock.advance(1000)
    log.append([Message("b", b"")])
    assert log.bounds("a") == {0: (10, 10)}
    assert reader.poll(1, 0).values == []
    log.close()


def test_a_position_outside_of_what_is_kept_is_broken(root: Path) -> None:
    """Both ways: deleted before it was read, and past the end. A follower skips what was deleted."""
    clock = ManualClock()
    log = SqliteLog(root, clock=clock)
    log.create([Topic("a", retention_seconds=60)])
    log.append([Message("a", b"%d" % i) for i in range(10)])
    chunks = log.follow("a")
    clock.advance(1000)
    log.append([Message("a", b"young")])
    reader = log.join("g", ["a"])
    assert reader.poll(100, 0).values == [b"young"]
    reader.seek({("a", 0): 3})
    with pytest.raises(Broken, match="records 3 to 9 were deleted"):
        reader.poll(1, 0)
    reader.seek({("a", 0): 12})
    with pytest.raises(Broken, match="past the end, 11"):
        reader.poll(1, 0)
    assert [record.value for record in next(chunks)] == [b"young"]
    log.close()


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local ext4 rw 0 0
//nas/share /mnt/my\\040share cifs rw 0 0
me@host: /mnt/remote fuse.sshfs rw 0 0
/dev/sda1 /mnt/usb fuseblk rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/log", ""),
        ("/home/me/log", "nfs4"),
        ("/home/local/log", ""),
        ("/homes/log", ""),
        ("/mnt/my share/log", "cifs"),
        ("/mnt/remote", "fuse.sshfs"),
        ("/mnt/usb/log", ""),
    ],
)
def test_a_network_file_system_is_refused(tmp_path: Path, path: str, kind: str) -> None:
    """By the mount nearest above the folder."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    if kind:
        with pytest.raises(ConfigError, match=kind):
            refuse_network(Path(path), mounts)
    else:
        refuse_network(Path(path), mounts)


def test_a_log_on_a_network_file_system_makes_no_file(tmp_path: Path) -> None:
    """The log itself asks the mount table, before it touches anything."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/ {tmp_path} nfs rw 0 0\n")
    with pytest.raises(ConfigError, match="nfs"):
        SqliteLog(tmp_path / "log", mounts=mounts)
    assert not (tmp_path / "log").exists()


def test_a_path_that_cannot_be_a_log_is_a_wrong_setting(tmp_path: Path) -> None:
    """A file, a folder that cannot be made, a file that is no database, a database of another program."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        SqliteLog(tmp_path / "file")
    with pytest.raises(ConfigError, match="not a folder"):
        SqliteLog(tmp_path / "file" / "log")
    with pytest.raises(ConfigError, match="cannot be made"):
        SqliteLog(Path("/proc/log"))
    (tmp_path / "text").mkdir()
    database_file(tmp_path / "text").write_text("not a database at all, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match="not a log"):
        SqliteLog(tmp_path / "text")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(database_file(tmp_path / "other")) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(ConfigError, match="another program"):
        SqliteLog(tmp_path / "other")


def test_an_unknown_topic_is_named(log: SqliteLog) -> None:
    """By every method that takes one; more than one partition is refused."""
    for use in (
        lambda: log.append([Message("nowhere", b"")]),
        lambda: log.join("g", ["a", "nowhere"]),
        lambda: log.follow("nowhere"),
        lambda: log.bounds("nowhere"),
    ):
        with pytest.raises(ConfigError, match="'nowhere'"):
            use()
    with pytest.raises(ConfigError, match="one partition"):
        log.create([Topic("wide", partitions=2)])


def test_a_full_disk_writes_nothing_and_heals(log: SqliteLog, root: Path) -> None:
    """A commit that does not fit is undone whole and says ``Unavailable``; with space again it goes through."""
    log.append([Message("a", b"%d" % i) for i in range(100)])
    reader = log.join("g", ["a"])
    assert len(reader.poll(100, 0)) == 100
    outputs = [Message("b", os.urandom(10_000)) for _ in range(100)]
    with files_at_most(wal_file(root).stat().st_size + 100_000):
        for _ in range(3):
            with pytest.raises(Unavailable):
                reader.commit(outputs)
            with pytest.raises(Unavailable):
                log.append(outputs)
            assert log.bounds("b") == {0: (0, 0)}
            assert log.committed("g") == {}
    assert len(reader.poll(100, 1)) == 100
    reader.commit(outputs)
    assert [record.value for record in read_all(log, "b")] == [message.value for message in outputs]
    assert check(root).problems == []


def test_a_reader_whose_lock_was_lost_cannot_commit(log: SqliteLog, root: Path) -> None:
    """Somebody deletes the lock files, another reader takes over: the first one's commit writes nothing."""
    log.append([Message("a", b"%d" % i) for i in range(10)])
    first, second = log.join("g", ["a"]), log.join("g", ["a"])
    assert len(first.poll(5, 0)) == 5
    assert len(second.poll(5, 0)) == 0
    for file in (root / "locks").iterdir():
        file.unlink()
    third = log.join("g", ["a"])
    assert len(third.poll(10, 0)) == 10
    with pytest.raises(Broken, match="taken over"):
        first.commit([Message("b", b"half")])
    assert read_all(log, "b") == []
    third.commit([Message("b", b"whole")])
    assert [record.value for record in read_all(log, "b")] == [b"whole"]


def test_locks_of_groups_and_topics_do_not_collide(root: Path) -> None:
    """Names that could be read in two ways have locks of their own, also with slashes."""
    log = SqliteLog(root)
    log.create([Topic("x.y"), Topic("y"), Topic("/../z")])
    readers = [log.join("g.x", ["y"]), log.join("g", ["x.y"]), log.join("g@y", ["/../z"])]
    assert all(reader.poll(1, 0).positions for reader in readers)
    log.close()


def test_a_fork_is_refused(log: SqliteLog, root: Path) -> None:
    """The child of a fork gets ``Broken`` from everything, its close does nothing, and the parent goes on."""
    reader = log.join("g", ["a"])
    child = os.fork()
    if child == 0:
        status = 0
        uses = (lambda: log.append([Message("a", b"")]), lambda: reader.poll(1, 0), lambda: log.bounds("a"))
        for use in uses:
            try:
                use()
                status = 1
            except Broken:
                pass
        log.close()
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    log.append([Message("a", b"parent")])
    assert reader.poll(1, 0).values == [b"parent"]
    assert check(root).problems == []


def test_what_was_closed_says_so(log: SqliteLog) -> None:
    """A reader and a log that are used after close raise ``Broken``; a follower ends."""
    chunks = log.follow("a")
    reader = log.join("g", ["a"])
    reader.close()
    with pytest.raises(Broken, match="closed"):
        reader.poll(1, 0)
    assert next(chunks) == []
    log.close()
    assert list(chunks) == []
    with pytest.raises(Broken, match="closed"):
        log.append([Message("a", b"")])


@pytest.mark.parametrize("hints", [True, False])
def test_another_process_wakes_a_reader(log: SqliteLog, root: Path, hints: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that waits returns when another process has appended, long before its timeout, also without inotify."""
    if not hints:
        monkeypatch.setattr(sqlite_wake, "inotify", lambda paths: None)
    script = (
        "import sys; from pathlib import Path; from tidemill.log.base import Message; from tidemill.log.sqlite import"
        " SqliteLog; SqliteLog(Path(sys.argv[1])).append([Message('a', b'from afar')])"
    )
    reader = log.join("g", ["a"])
    with ending(subprocess.Popen([sys.executable, "-c", script, str(root)])) as process:
        assert reader.poll(10, 60).values == [b"from afar"]
        assert process.wait() == 0


def test_a_touch_is_noticed_and_nothing_else_is(tmp_path: Path) -> None:
    """A watch is quiet until its topic is touched, not another; a touch before the wait counts, many count once."""
    touch = Touch(tmp_path)
    fd = sqlite_wake.inotify([wake_file(tmp_path, "a"), wake_file(tmp_path, "b")])
    if fd is None:
        pytest.skip("no inotify here")
    readable = select.poll()
    readable.register(fd, select.POLLIN)
    touch.touch("c")
    assert readable.poll(0) == []
    touch.touch("b")
    touch.touch("b")
    assert readable.poll(60_000) == [(fd, select.POLLIN)]
    os.read(fd, 4096)
    assert readable.poll(0) == []
    os.close(fd)
    touch.close()


def test_waiting_grows_with_idleness() -> None:
    """1 ms after a record, 5 ms at most."""
    assert [pause_after(idle) for idle in (0.0, 0.5, 3600.0)] == [0.001, 0.0025, 0.005]


def test_the_wal_stays_small_and_reads_do_not_hold_it(log: SqliteLog, root: Path) -> None:
    """With readers and a follower open and 40 MB written, the WAL is written over, not grown."""
    reader = log.join("g", ["a"])
    chunks = log.follow("a")
    for _ in range(40):
        log.append([Message("a", bytes(1000)) for _ in range(1000)])
        reader.poll(1000, 0)
        next(chunks)
    assert wal_file(root).stat().st_size < 16 << 20


def test_threads_share_a_log(log: SqliteLog, root: Path) -> None:
    """Appends from several threads come whole, and none is lost."""

    def write(name: bytes) -> None:
        for i in range(50):
            log.append([Message("a", b"%d" % (2 * i + j), name) for j in range(2)])

    threads = [threading.Thread(target=write, args=(b"%d" % n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_all(log, "a")
    for n in range(4):
        assert [int(r.value) for r in records if r.key == b"%d" % n] == list(range(100))
    assert all(one.key == two.key for one, two in zip(records[::2], records[1::2], strict=True))


def test_a_writer_that_is_stuck_is_reported(log: SqliteLog, root: Path) -> None:
    """Another program that holds SQLite's lock makes a write ``Unavailable`` after a while, and nothing is lost."""
    other = sqlite3.connect(database_file(root), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    log._store._db.execute("PRAGMA busy_timeout=50")
    with pytest.raises(Unavailable, match="locked"):
        log.append([Message("a", b"")])
    other.execute("ROLLBACK")
    other.close()
    log.append([Message("a", b"")])
    assert log.bounds("a") == {0: (0, 1)}
