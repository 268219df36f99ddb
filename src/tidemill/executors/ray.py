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
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import numpy as np
import structlog
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.errors import ConfigError, TidemillError, Unavailable
from tidemill.executors.base import Assignment, Reply, TrialFailed, Work, carry_out, model_of, predictions_of, scored_of
from tidemill.executors.processes import ATTEMPTS
from tidemill.failpoints import failpoint
from tidemill.learners.base import Fold, Parameters, Samples, Scored
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
while read -r pid; do pids="$pids $pid"; done
kill -9 $pids
rm -rf "$0" || { sleep 1; rm -rf "$0"; }
"""
"""A shell that waits until this process closes its input, or is killed; it ends what is left of a local Ray."""

logger = structlog.get_logger()


class _Shared(Struct, frozen=True):
    """What all tasks of a search need, once in the memory of each machine; ``memory_bytes`` is one worker's share."""

    work: Work
    samples: Samples
    folds: Sequence[Fold]
    memory_bytes: int


class Ray:
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
        processors = sum(machine["Resources"]["CPU"] for machine in machines)
        logger.info("ray_connected", machines=len(machines), processors=processors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        for future, reference in waiting.items():
            future.cancel()
            ray.cancel(reference, force=True)

    def evaluate(self, learner: str, parameters: Parameters, bar: float | None = None) -> Scored:
        """See ``Executor.evaluate``."""
        return scored_of(self._ask(Assignment("evaluate", learner, parameters, bar=bar)))

    def fit(self, learner: str, parameters: Parameters, rounds: int) -> bytes:
        """See ``Executor.fit``."""
        return model_of(self._ask(Assignment("fit", learner, parameters, rounds)))

    def out_of_fold(self, learner: str, parameters: Parameters, rounds: int) -> NDArray[np.float64]:
        """See ``Executor.out_of_fold``."""
        return predictions_of(self._ask(Assignment("out_of_fold", learner, parameters, rounds)), self._rows)

    def _ask(self, asked: Assignment) -> Reply:
        closing = self._closing
        with self._slots:
            for _ in range(ATTEMPTS):
                reply = self._try(asked, closing)
                if reply is not None:
                    return self._told(reply)
        raise TrialFailed(f"its worker process died {ATTEMPTS} times; out of memory{self._share()}?")

    def _try(self, asked: Assignment, closing: threading.Event) -> Reply | None:
        """The answer, or None where the worker or its machine died.

        It waits for a plain future: in ``ray.get`` the main thread would act on a signal a second later, and lose its code.
        """
        with self._lock:
            if closing.is_set():
                raise TrialFailed("the search was stopped")
            reference = self._task.remote(self._shared, asked)
            future: Future[Reply] = reference.future()
            self._waiting[future] = reference
        try:
            return future.result()
        except CancelledError:
            raise TrialFailed("the search was stopped") from None
        except RayTaskError as error:
            raise TrialFailed(_line(error)) from error
        except RayError as error:
            logger.warning("trial_worker_replaced", error=_line(error))
            return None
        finally:
            if future.done():
                self._waiting.pop(future, None)

    def _told(self, reply: Reply) -> Reply:
        if not reply.out_of_memory:
            return reply
        return msgspec.structs.replace(reply, error=f"out of memory{self._share()}: {reply.error}")

    def _share(self) -> str:
        """What a worker may take, in brackets."""
        return f" (trainer.memory_gb gives a worker {self._limit / 1e9:.3g} GB)" if self._limit else ""


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
                raise Unavailable(f"{_named(address)} is not ready within {OPEN_SECONDS:g} s") from None
            except Unavailable as error:  # a local Ray gives a process of its own 15 s, not enough on a busy machine
                self._thread.join()
                if not left:
                    raise
                logger.warning("ray_start_failed", error=str(error))
            finally:
                if not opened.done():
                    self._closing.set()

    def _hold(self, address: str, processors: int, opened: Future[None]) -> None:
        folder = tempfile.mkdtemp(prefix="ray-")
        local: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False, "_temp_dir": folder}
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(["/bin/sh", "-c", GUARD, folder], start_new_session=True, **pipe) as guard:
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(local if address == "local" else {}))
                print(*_agents(), sep="\n", file=guard.stdin, flush=True)
                opened.set_result(None)
                self._closing.wait()
            except Exception as error:
                opened.set_exception(_explained(address, error))
            finally:
                ray.shutdown()

    def close(self) -> None:
        """Returns once Ray is shut down."""
        self._closing.set()
        self._thread.join()


def _agents() -> list[int]:
    """Two children of a local raylet that would outlive its kill by a minute, in which they try to report it."""
    raylets = [pid for pid in _children(os.getpid()) if _proc(pid, "comm") == "raylet\n"]
    return [pid for raylet in raylets for pid in _children(raylet) if "Agent" in _proc(pid, "cmdline")]


def _children(pid: int) -> list[int]:
    threads = os.listdir(f"/proc/{pid}/task")
    return [int(child) for thread in threads for child in _proc(pid, f"task/{thread}/children").split()]


def _proc(pid: int, name: str) -> str:
    """What /proc says of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


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
