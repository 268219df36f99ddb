"""Tasks of a Ray cluster that try and fit: on its machines, or in a Ray on this one where no cluster is named.

Ray pickles what it sends between its processes; nothing of that is kept. Learners travel by name, so every machine has the
same packages installed.
"""

import logging
import os
import resource
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from msgspec import Struct

from tidemill.errors import ConfigError, TidemillError, Unavailable
from tidemill.executors.base import ATTEMPTS, AskingExecutor, Assignment, Reply, TrialFailed, Work, carry_out
from tidemill.failpoints import failpoint
from tidemill.learners.base import Fold, Samples
from tidemill.priority import run_when_idle

# Read by the import. Else Ray puts a handler of its own before this process's SIGTERM, and leaves none when it shuts down.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_SECONDS = 5.0
"""How long a cluster may take to accept a connection; Ray itself would try for minutes."""
OPEN_SECONDS = 120.0
"""How long it may take until Ray is ready, which on a busy machine is slow to start."""
SAME = ("tidemill", "numpy", "lightgbm", "scikit-learn", "xgboost-cpu", "xgboost", "catboost")
"""Packages that must have one version in a search, where they are installed: a trial has the same score on each machine."""

GUARD = """
read -r closed || for turn in 1 2 3 4 5 6 7 8 9 10; do
    find /proc/[0-9]*/fd -lname "$0/*" 2>/dev/null | cut -d/ -f3 | sort -u | grep -vx "$1" | xargs -r kill -9
    rm -rf "$0"
    sleep 1
done
rm -rf "$0" || { sleep 1; rm -rf "$0"; }
"""
"""A shell that waits for a word, or for the end of its input. Without the word it kills what has files in the folder: two of
Ray's processes would outlive the others by a minute, in which they try to report their end; some may only be starting.
"""

logger = structlog.get_logger()


class _Shared(Struct, frozen=True):
    """What all tasks of a search need, once in the memory of each machine; ``memory_bytes`` is one worker's share."""

    work: Work
    samples: Samples
    folds: Sequence[Fold]
    memory_bytes: int


class Ray(AskingExecutor):
    """An ``Executor``. Each assignment is a task for as many processors as ``work.threads``, on whatever machine has them
    free; its worker process runs when nobody else wants the processor. Ray starts no task on a machine without room for its
    share of ``memory_bytes``, and a trial that takes more is refused memory, which fails it.

    A Ray that this process is connected to is used, and left as it is. Else RAY_ADDRESS names the cluster; without it a Ray
    starts on this machine, and ends with the executor or with this process, even by kill -9.
    """

    def __init__(self, samples: Samples, folds: Sequence[Fold], work: Work, workers: int = 1) -> None:
        self._rows = len(samples.labels)
        self._limit = work.memory_bytes // workers
        self._slots = threading.BoundedSemaphore(workers)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._waiting: dict[Future[Reply], Any] = {}
        self._session = None if ray.is_initialized() else _Session(workers * work.threads)
        try:
            machines = _machines(work.threads, self._limit)
            _check_packages(machines)
            self._shared: Any = ray.put(_Shared(work, samples, folds, self._limit))
        except RayError as error:
            self.close()
            raise Unavailable(f"Ray does not take the search: {_line(error)}") from error
        except BaseException:
            self.close()
            raise
        options = {
            "num_cpus": work.threads,
            "memory": self._limit or None,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        self._task: Any = ray.remote(_carry_out).options(**options)
        processors = sum(int(machine["Resources"]["CPU"]) for machine in machines)
        logger.info("ray_connected", machines=len(machines), processors=processors)

    def close(self) -> None:
        """See ``Executor.close``; a Ray that was started for this ends too."""
        self._stop()
        self._shared = None  # lets go of the samples in a Ray that goes on
        if self._session:
            self._session.close()

    def abandon(self) -> None:
        """See ``Executor.abandon``."""
        self._stop()
        self._closing = threading.Event()

    def _stop(self) -> None:
        """Who waits is told at once, and need not wait for Ray."""
        with self._lock:
            self._closing.set()
            waiting, self._waiting = self._waiting, {}
        for answer, reference in waiting.items():
            answer.cancel()
            ray.cancel(reference, force=True)

    def _replies(self, asked: Assignment) -> Generator[Reply | None, None, None]:
        closing = self._closing
        with self._slots:
            while True:
                yield self._try(asked, closing)

    def _try(self, asked: Assignment, closing: threading.Event) -> Reply | None:
        """The answer, or None where the worker or its machine died.

        It waits for a plain future: in ``ray.get`` the main thread would act on a signal a second later, and lose its code.
        """
        with self._lock:
            if closing.is_set():
                raise TrialFailed("the search was stopped")
            reference = self._task.remote(self._shared, asked)
            answer: Future[Reply] = Future()
            self._waiting[answer] = reference
        reference.future().add_done_callback(lambda done: _pass_on(done, answer))
        try:
            return answer.result()
        except CancelledError:
            raise TrialFailed("the search was stopped") from None
        except RayTaskError as error:
            raise TrialFailed(_line(error)) from error
        except RayError as error:
            logger.warning("trial_worker_replaced", error=_line(error))
            return None
        finally:
            if answer.done():
                self._waiting.pop(answer, None)


def _pass_on(done: Future[Reply], answer: Future[Reply]) -> None:
    """Unless nobody waits for it any more."""
    if not answer.set_running_or_notify_cancel():
        return
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)


class _Session:
    """A connection to Ray, which a thread opens and closes. In the main thread Ray would take SIGTERM for itself, and could
    not be given up. The kernel ends the processes of a local Ray with the thread that started them: with this process,
    however it ends, and after a start that failed.
    """

    def __init__(self, processors: int) -> None:
        address = os.environ.get("RAY_ADDRESS") or "local"
        _check_answers(address)
        self._closing = threading.Event()
        for left in reversed(range(ATTEMPTS if address == "local" else 1)):
            opened: Future[None] = Future()
            self._thread = threading.Thread(target=self._hold, args=(address, processors, opened), name="ray", daemon=True)
            self._thread.start()
            try:
                opened.result(OPEN_SECONDS)
                break
            except TimeoutError:
                self._closing.set()
                raise Unavailable(f"{_named(address)} is not ready within {OPEN_SECONDS:g} s") from None
            except Unavailable as error:  # a local Ray gives a process of its own 15 s, not enough on a busy machine
                self._thread.join()
                if not left:
                    raise
                logger.warning("ray_start_failed", error=str(error))
            except BaseException:  # this process is to end: Python would hang while a thread is inside of Ray
                self.close()
                raise

    def _hold(self, address: str, processors: int, opened: Future[None]) -> None:
        own: AbstractContextManager[dict[str, Any]] = _local(processors) if address == "local" else nullcontext({})
        try:
            with own as options:
                try:
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
                    opened.set_result(None)
                    self._closing.wait()
                finally:
                    ray.shutdown()
        except Exception as error:
            opened.set_exception(_explained(address, error))

    def close(self) -> None:
        """Returns once Ray is shut down."""
        self._closing.set()
        self._thread.join()


@contextmanager
def _local(processors: int) -> Iterator[dict[str, Any]]:
    """The options of a local Ray, with a folder for it. Should this process be killed, or Ray not start, nothing is left."""
    folder = tempfile.mkdtemp(prefix="ray-")
    command = ["/bin/sh", "-c", GUARD, folder, str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        yield {"num_cpus": processors, "include_dashboard": False, "_temp_dir": folder}
        guard.communicate(b"closed\n")


def _check_answers(address: str) -> None:
    """Raises ``ConfigError`` for what is no address, ``Unavailable`` where nobody answers."""
    if address in ("local", "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        place = (parts.hostname or "", parts.port or 0)
    except ValueError:
        place = ("", 0)
    if not all(place):
        raise ConfigError(f"RAY_ADDRESS is {address!r}: it must be HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        socket.create_connection(place, ANSWER_SECONDS).close()
    except OSError as error:
        raise Unavailable(f"{_named(address)} does not answer: {error}") from error


def _named(address: str) -> str:
    return "the Ray of this machine" if address == "local" else f"the Ray cluster at {address} (RAY_ADDRESS)"


def _explained(address: str, error: Exception) -> TidemillError:
    if "AuthenticationError" in str(error.__cause__):
        return ConfigError(f"{_named(address)} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN")
    if "Version mismatch" in str(error):
        return ConfigError(f"{_named(address)} has other versions. {' '.join(str(error).split())}")
    text = f"{_named(address)}: {_line(error)}"
    return ConfigError(text) if isinstance(error, ValueError | ImportError) else Unavailable(text)


def _line(error: Exception) -> str:
    """The last line of Ray's text says what it came to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _machines(processors: int, memory_bytes: int) -> list[dict[str, Any]]:
    """Those with room for a worker. Raises ``ConfigError`` where none has: its tasks would wait for ever."""
    machines = [machine for machine in ray.nodes() if machine["Alive"]]  # type: ignore[no-untyped-call]
    wanted = {"CPU": processors, "memory": memory_bytes}
    roomy = [
        machine
        for machine in machines
        if all(machine["Resources"].get(name, 0) >= amount for name, amount in wanted.items())
    ]
    if not roomy:
        room = f"{processors} processor{'s' if processors > 1 else ''} and {memory_bytes / 1e9:.3g} GB"
        raise ConfigError(f"no machine of the Ray cluster ({len(machines)}) has {room} for a worker")
    return roomy


def _check_packages(machines: Sequence[dict[str, Any]]) -> None:
    """Raises ``ConfigError`` where a machine has other packages than this one."""
    versions = _versions()
    ours = versions()
    ask = ray.remote(versions)
    asked = []
    for machine in machines:
        there = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
        reference: Any = ask.options(num_cpus=0, scheduling_strategy=there).remote()
        asked.append((f"the machine {machine['NodeManagerAddress']} of the Ray cluster", reference.future()))
    for name, answer in asked:
        try:
            theirs = answer.result(OPEN_SECONDS)
        except TimeoutError:
            raise Unavailable(f"{name} starts no worker within {OPEN_SECONDS:g} s") from None
        for package in SAME:
            mine, other = ours.get(package, ""), theirs.get(package, "")
            if mine and mine != other and (other or package == "tidemill"):
                found = f"{package} {other}" if other else f"no {package}"
                raise ConfigError(f"{name} has {found}, and this one {package} {mine}: install the same on all")


def _versions() -> Callable[[], dict[str, str]]:
    """A function that Ray pickles by value, since it is made here: it runs where there is no tidemill."""
    packages = SAME

    def versions() -> dict[str, str]:
        from contextlib import suppress
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for package in packages:
            with suppress(PackageNotFoundError):
                found[package] = version(package)
        return found

    return versions


def _carry_out(shared: _Shared, asked: Assignment) -> Reply:
    """In a worker process of Ray. What that holds already, mostly Ray's own, does not count as the trial's memory."""
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    run_when_idle(shared.memory_bytes and held + shared.memory_bytes)
    try:
        reply = carry_out(shared.work, shared.samples, shared.folds, asked)
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    failpoint("tuner.tried")
    return reply
