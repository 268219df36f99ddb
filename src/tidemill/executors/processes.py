"""Worker processes on this machine that try and fit, so that the process that owns them stays light and answers signals."""

import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from tidemill.core.schema import Task
from tidemill.executors.base import AskingExecutor, Assignment, Reply, TrialFailed, Work, carry_out
from tidemill.failpoints import failpoint
from tidemill.learners.base import Fold, Samples
from tidemill.priority import run_when_idle
from tidemill.temporary import TemporaryFolder

logger = structlog.get_logger()
_starting = threading.Lock()


class _Scratch(Struct, frozen=True):
    """The samples and folds as files of a folder, for processes to map into their memory, and what is no array."""

    folder: str
    columns: tuple[str, ...]
    categorical: tuple[int, ...]
    task: Task
    classes: int
    weighted: bool
    folds: int


class Processes(AskingExecutor):
    """An ``Executor``. Each worker has one assignment at a time, runs when nobody else wants the processor, reads the
    samples from memory-mapped files, is replaced if killed, and ends with its owner, even by kill -9. Beyond its share of
    ``memory_bytes`` it is refused memory, which fails the trial.
    """

    def __init__(self, samples: Samples, folds: Sequence[Fold], work: Work, workers: int = 1) -> None:
        self._folder = TemporaryFolder("tidemill-trials-")
        self._scratch = _save(str(self._folder.path), samples, folds)
        self._rows = len(samples.labels)
        self._work = work
        self._limit = work.memory_bytes // workers
        self._start(workers)

    def _start(self, workers: int) -> None:
        self._closing = threading.Event()
        self._workers = [_Worker(self._scratch, self._work, self._limit) for _ in range(workers)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def close(self) -> None:
        """See ``Executor.close``; the files go too."""
        self._stop()
        self._folder.close()

    def abandon(self) -> None:
        """See ``Executor.abandon``."""
        self._stop()
        self._start(len(self._workers))

    def _stop(self) -> None:
        self._closing.set()
        for worker in self._workers:
            worker.kill()

    def _replies(self, asked: Assignment) -> Generator[Reply | None, None, None]:
        closing, free = self._closing, self._free
        worker = free.get()
        try:
            while True:
                reply = worker.ask(asked)
                if reply is None and closing.is_set():
                    raise TrialFailed("the search was stopped")
                if reply is None or reply.out_of_memory:
                    error = reply.error if reply else ""
                    logger.warning("trial_worker_replaced", exit_code=worker.kill(), error=error)
                    worker.start()
                yield reply
        finally:
            free.put(worker)


class _Worker:
    """One child process and the pipe to it."""

    def __init__(self, scratch: _Scratch, work: Work, memory_bytes: int) -> None:
        self._arguments = (scratch, work, memory_bytes)
        self.start()

    def start(self) -> None:
        """Spawned, not forked: LightGBM's OpenMP threads do not survive a fork, and hang."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(*self._arguments, theirs), daemon=True)
        with _without_main():
            self._process.start()
        theirs.close()

    def ask(self, asked: Assignment) -> Reply | None:
        """The answer, or None where the process died."""
        try:
            self._pipe.send_bytes(msgspec.msgpack.encode(asked))
            return msgspec.msgpack.decode(self._pipe.recv_bytes(), type=Reply)
        except (EOFError, OSError):
            return None

    def kill(self) -> int | None:
        """End the process; its exit code."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is spawned here does not import the program's main module, as it else would: it needs nothing of it, it
    would wait for all that it imports, and a script without a guard would run again.
    """
    main = sys.modules["__main__"]
    with _starting:
        kept = {name: vars(main).get(name) for name in ("__spec__", "__file__")}
        vars(main).update(dict.fromkeys(kept))
        try:
            yield
        finally:
            vars(main).update(kept)


def _save(folder: str, samples: Samples, folds: Sequence[Fold]) -> _Scratch:
    place = Path(folder)
    np.save(place / "matrix.npy", samples.matrix)
    np.save(place / "labels.npy", samples.labels)
    if samples.weights is not None:
        np.save(place / "weights.npy", samples.weights)
    for number, (rows, scored) in enumerate(folds):
        np.save(place / f"rows-{number}.npy", rows)
        np.save(place / f"scored-{number}.npy", scored)
    return _Scratch(
        folder,
        samples.columns,
        samples.categorical,
        samples.task,
        samples.classes,
        samples.weights is not None,
        len(folds),
    )


def _open(scratch: _Scratch) -> tuple[Samples, list[Fold]]:
    def array(name: str) -> Any:
        return np.load(Path(scratch.folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    samples = Samples(
        array("matrix"),
        array("labels"),
        array("weights") if scratch.weighted else None,
        scratch.columns,
        scratch.categorical,
        scratch.task,
        scratch.classes,
    )
    return samples, [(array(f"rows-{number}"), array(f"scored-{number}")) for number in range(scratch.folds)]


def _serve(scratch: _Scratch, work: Work, memory_bytes: int, pipe: Connection) -> None:
    """A worker's whole life: assignments until the pipe closes. Ctrl-C is for the owner to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_when_idle(memory_bytes)
    threading.Thread(target=_end_with_owner, args=(scratch.folder,), daemon=True).start()
    samples, folds = _open(scratch)
    while True:
        try:
            asked = msgspec.msgpack.decode(pipe.recv_bytes(), type=Assignment)
        except (EOFError, OSError):
            return
        reply = carry_out(work, samples, folds, asked)
        failpoint("tuner.tried")
        pipe.send_bytes(msgspec.msgpack.encode(reply))


def _end_with_owner(folder: str) -> None:
    """Even in the middle of a trial: LightGBM lets go of the interpreter's lock while it works."""
    owner = multiprocessing.parent_process()
    assert owner is not None  # noqa: S101  only ever called in a child
    owner.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
