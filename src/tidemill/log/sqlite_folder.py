"""The folder of a SQLite log: what it may stand on, the name of each file in it, and the locks that processes share.

All locks are ``flock``: the kernel frees them when a process ends, however it ends, so there is never one to clean up.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from tidemill.clock import SystemClock
from tidemill.errors import ConfigError, Unavailable

MOUNTS = Path("/proc/mounts")
# WAL needs memory that all processes share; over a network each machine would have its own.
NETWORK_FILE_SYSTEMS = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("ocfs2", "smb2", "smb3", "smbfs"),
}
NETWORK_FUSE = ("ceph", "davfs", "gcsfuse", "gluster", "juicefs", "moosefs", "rclone", "s3", "seaweedfs", "smb", "sshfs")
_clock = SystemClock()


def database_file(root: Path) -> Path:
    """Where the records are; its presence is what makes a folder a log."""
    return root / "log.db"


def wal_file(root: Path) -> Path:
    """SQLite's write-ahead log of the database."""
    return root / "log.db-wal"


def file_bytes(path: Path) -> int:
    """The file's size, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def prepare_folder(root: Path, mounts: Path = MOUNTS) -> Path:
    """Make the folder where it is missing; its absolute path. Raises ``ConfigError`` where a log cannot live there."""
    root = root.absolute()
    refuse_network(root, mounts)
    try:
        (root / "locks").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"the log's path {root} is not a folder: name another one in stream.url") from None
    except OSError as error:
        raise ConfigError(f"the log's folder {root} cannot be made: {error.strerror}") from None
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"the log's folder {root} is not writable for this user")
    return root


def refuse_network(root: Path, mounts: Path = MOUNTS) -> None:
    """Raise ``ConfigError`` where ``root`` is on a network file system, by the mount table."""
    kind = _file_system(root, mounts)
    name = kind.removeprefix("fuse.")
    if kind in NETWORK_FILE_SYSTEMS or (name != kind and name.startswith(NETWORK_FUSE)):
        raise ConfigError(f"the log's folder {root} is on a network file system ({kind}): use a local disk, or kafka://")


def _file_system(root: Path, mounts: Path) -> str:
    """The type of what is mounted nearest above ``root``; "" where there is no mount table (not Linux)."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    path, best, kind = os.path.realpath(root), -1, ""
    for line in filter(None, lines):
        _, place, found = line.split(" ", 3)[:3]
        # The table writes a space in a name as \040.
        place = place.replace("\\040", " ").rstrip("/")
        if len(place) >= best and (path + "/").startswith(place + "/"):
            best, kind = len(place), found
    return kind


class GroupLock:
    """The right to read one topic for one group. Held by one reader of all processes at a time."""

    def __init__(self, root: Path, group: str, topic: str) -> None:
        # "@" cannot come out of quote, so no two pairs share a file.
        path = root / "locks" / f"{quote(group, safe='')}@{quote(topic, safe='')}.lock"
        try:
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise ConfigError(f"the lock of group {group!r} on topic {topic!r} cannot be made: {error.strerror}") from None

    def try_take(self) -> bool:
        """Take it if it is free."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let another reader have it."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release it for good."""
        self._file.close()


class WriteLock:
    """One writer at a time among all threads and processes of a log, each in its turn.

    Waiting is by trying, since flock has no time limit, and a stopped process must not hang the others silently. Who waits
    holds ``turn.lock`` meanwhile, so a process that writes without a pause cannot take ``write.lock`` again before it: the
    longest wait beside such a one was 27 ms, and 290 ms with one file alone.
    """

    def __init__(self, root: Path, patience: float = 30.0) -> None:
        self._patience = patience
        self._threads = threading.Lock()
        self._turn = (root / "turn.lock").open("ab")
        self._write = (root / "write.lock").open("ab")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, nobody else writes. Raises ``Unavailable`` where another one does for longer than the patience."""
        deadline = _clock.monotonic() + self._patience
        if not self._threads.acquire(timeout=self._patience):
            raise self._timed_out()
        try:
            self._take(self._turn, deadline)
            try:
                self._take(self._write, deadline)
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
            try:
                yield
            finally:
                fcntl.flock(self._write, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Close the files."""
        self._turn.close()
        self._write.close()

    def _take(self, file: BinaryIO, deadline: float) -> None:
        wait = 0.00005
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _clock.monotonic() > deadline:
                    raise self._timed_out() from None
            else:
                return
            _clock.sleep(wait)
            wait = min(wait * 1.5, 0.001)

    def _timed_out(self) -> Unavailable:
        return Unavailable(f"the log's write lock {self._write.name} is not free after {self._patience:g} seconds")
