"""Temporary folders of processes that may be killed: each is locked while its owner lives, and whoever makes the next one
sweeps away those that nobody holds.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWEEP_SECONDS = 60.0
"""A folder is older than this when it is swept: a new one is not locked at once."""

_mine: set["TemporaryFolder"] = set()


class TemporaryFolder:
    """A new folder in ``root`` (by default where the system has them), gone with all it holds when it is closed."""

    def __init__(self, prefix: str, root: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        self._lock: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        _mine.add(self)
        _sweep(prefix, self.path)

    def close(self) -> None:
        """Remove it; may be called again."""
        _mine.discard(self)
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_all() -> None:
    """Those of this process, before an end that unwinds nothing."""
    for folder in list(_mine):
        folder.close()


def _sweep(prefix: str, newest: Path) -> None:
    for folder in newest.parent.glob(f"{prefix}*"):
        with folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
            if lock is not None and os.fstat(lock).st_mtime < newest.stat().st_mtime - SWEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_lock(folder: Path, kind: int) -> Iterator[int | None]:
    """A flock on a folder (which needs no right to write in it), or None where somebody else holds one, it is gone, or it is
    another user's.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        yield None
        return
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        yield None
    else:
        yield descriptor
    finally:
        os.close(descriptor)
