"""Slots: which member of a group a process is, under a name that outlives it.

Kafka knows a static member by its instance id and a transactional producer by its transactional id. A process that starts
again under the same two takes its partitions back at once and ends the transaction that it died in; two processes under the
same would fence each other without end. So a slot is a number with a lock file: the kernel frees it when a process dies.
"""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tidemill.clock import SystemClock
from tidemill.errors import ConfigError

QUEUE_SECONDS = 5.0
"""How long to queue for the slots of a group: a process that was stopped in its turn must not stop the others."""
_clock = SystemClock()


class Slots:
    """The slots of one machine and folder. ``node`` must differ between machines; empty takes the host's name."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder.absolute()
        place = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        self._name = f"{node or socket.gethostname()}.{place}"

    def take(self, group: str) -> "Slot":
        """The first free slot of a group: one that is only looked after (``left_behind``) is waited for."""
        number = 0
        with self._turn(group):
            while True:
                slot = self._try(group, number)
                if slot is not None:
                    return slot
                number += 1

    @contextmanager
    def left_behind(self, group: str) -> Iterator[list[str]]:
        """The names of the slots that were used here and are free now; nobody takes one of them meanwhile."""
        with self._turn(group):
            numbers = (int(path.suffixes[-2][1:]) for path in self._folder.glob(f"{quote(group, safe='')}.*.lock"))
            taken = [slot for number in sorted(numbers) if (slot := self._try(group, number)) is not None]
            try:
                yield [slot.name for slot in taken]
            finally:
                for slot in taken:
                    slot.release()

    def _try(self, group: str, number: int) -> "Slot | None":
        lock = self._locked(f"{quote(group, safe='')}.{number}.lock")
        return None if lock is None else Slot(f"{group}.{self._name}.{number}", lock)

    @contextmanager
    def _turn(self, group: str) -> Iterator[None]:
        """One process at a time. Else one that starts again finds its old slot in the hands of one that looks after it,
        takes another, and its partitions stand still until the broker gives its old membership up.
        """
        until = _clock.monotonic() + QUEUE_SECONDS
        while (lock := self._locked(f"{quote(group, safe='')}.queue")) is None and _clock.monotonic() < until:
            _clock.sleep(0.01)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _locked(self, name: str) -> int | None:
        """The lock of that name as an open file; None where another process has it."""
        path = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"the lock {path} cannot be made: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock


class Slot:
    """A slot that this process holds; ``name`` is the same for whoever holds it next."""

    def __init__(self, name: str, lock: int) -> None:
        self.name = name
        self._lock: int | None = lock

    def release(self) -> None:
        """Give it back; may be repeated."""
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None

    __del__ = release
