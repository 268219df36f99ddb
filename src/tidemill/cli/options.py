"""What several commands share: the project option, and how they end."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from tidemill.wiring import Wiring

EXIT_SECONDS = 2.0
"""How long a process that was told to exit may take to clean up, before it ends as it is: half a supervisor's patience."""

ProjectOption = Annotated[Path, typer.Option("--project", "-p", help="The project's folder.")]


@contextmanager
def open_project(directory: Path) -> Iterator["Wiring"]:
    """The project's parts; its log is closed afterwards."""
    from tidemill.wiring import Wiring

    wiring = Wiring(directory)
    try:
        yield wiring
    finally:
        wiring.close()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def exit_on_signals(unfinished: bool = False) -> threading.Event:
    """For a role whose turn takes long and whose work may end anywhere: the first signal ends it where it is.

    A role that ends when told has done what it should: exit code 0. A command that was to come to a result has not, and is
    ``unfinished``: 128 and the signal's number, so that what stands behind it (``train && run``) does not go on.

    A library may swallow the exception that ends it (in an import, a callback, a destructor), or be long in cleaning up:
    a thread ends the process then. It is started here, for a handler may interrupt a thread's start, and could not.
    """
    leaving: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end() -> None:
        code = leaving.get()
        threading.Event().wait(EXIT_SECONDS)
        os._exit(code)

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 128 + number if unfinished else 0
        leaving.put(code)
        raise SystemExit(code)

    threading.Thread(target=end, name="exit", daemon=True).start()
    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return threading.Event()


def say(text: str) -> None:
    """One line to the standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
