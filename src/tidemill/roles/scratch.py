"""Memory on disk: arrays and bytes in files without a name, which the kernel frees when the process ends, however it does.

Raises ``Unavailable`` where the disk refuses; what was being written is undefined then, and all is to be made anew.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tidemill.errors import Unavailable

FILE_BYTES = 256 << 20


class Columns:
    """Rows of named columns, zero until they are written. A row is in one place: any one of them costs one page."""

    def __init__(self, folder: Path, kinds: Mapping[str, DTypeLike], rows: int) -> None:
        self.kind = np.dtype(list(kinds.items()))
        with _our_errors():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (kept)
        self.rows = 0
        self.grow(rows)

    def __getitem__(self, name: str) -> NDArray:  # type: ignore[type-arg]
        """The whole column. Not to be held over ``grow``."""
        return self._array[name]

    def grow(self, rows: int) -> None:
        """To so many rows."""
        size = rows * self.kind.itemsize
        with _our_errors():
            os.posix_fallocate(self._file.fileno(), 0, size)  # a page that the disk lacks later is a SIGBUS
            self._map = mmap.mmap(self._file.fileno(), size)
        self._array = np.frombuffer(self._map, dtype=self.kind)
        self.rows = rows

    def let_go(self) -> None:
        """Give the pages back to the kernel, which reads them again where they are needed."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Delete all, once no column is held any more."""
        del self._array, self._map
        self._file.close()


class Texts:
    """Bytes that are written once and read by place. A file whose bytes are all released is closed, and so deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._last = -1
        self._end = FILE_BYTES

    def write(self, texts: list[bytes]) -> NDArray[np.int64]:
        """Their places: the number of the file, times ``FILE_BYTES``, and where in it they begin."""
        if not texts:
            return np.empty(0, dtype=np.int64)
        if self._end >= FILE_BYTES:
            self._open()
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        starts = self._end + np.cumsum(sizes) - sizes
        fits = int(np.searchsorted(starts, FILE_BYTES))
        data = b"".join(texts[:fits])
        with _our_errors():
            _write(self._files[self._last], data, self._end)
        self._end += len(data)
        self._held[self._last] += fits
        places: NDArray[np.int64] = self._last * FILE_BYTES + starts[:fits]
        return places if fits == len(texts) else np.concatenate([places, self.write(texts[fits:])])

    def read(self, places: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[bytes]:
        """What was written there."""
        files, starts = np.divmod(places, FILE_BYTES)
        return [
            os.pread(self._files[file], size, start)
            for file, size, start in zip(files.tolist(), sizes.tolist(), starts.tolist(), strict=True)
        ]

    def release(self, places: NDArray[np.int64]) -> None:
        """They are not read again."""
        files, counts = np.unique(places // FILE_BYTES, return_counts=True)
        for file, count in zip(files.tolist(), counts.tolist(), strict=True):
            self._held[file] -= count
            if not self._held[file] and file != self._last:
                os.close(self._files.pop(file))
                del self._held[file]

    def close(self) -> None:
        """Delete all."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self) -> None:
        if self._last >= 0 and not self._held[self._last]:
            os.close(self._files.pop(self._last))
            del self._held[self._last]
        self._last += 1
        self._end = 0
        self._held[self._last] = 0
        with _our_errors(), tempfile.TemporaryFile(dir=self._folder) as file:
            self._files[self._last] = os.dup(file.fileno())


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"files of the join: {error.strerror}") from error


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
