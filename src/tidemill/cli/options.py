"""What several commands share: how they are declared, the project option, and how they end."""

import argparse
import math
import os
import queue
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tidemill.wiring import Wiring

EXIT_SECONDS = 2.0
"""How long a process that was told to exit may take to clean up, before it ends as it is: half a supervisor's patience."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WIDTH = 80
"""Of a help page's own texts."""

GENERAL = {"debug": "show the traceback of an error", "json_logs": "log lines as JSON"}
"""What holds for every command, before it or after; a variable tells the processes that it starts."""

Run = Callable[..., int | None]
"""A command: it takes its options by their names and returns an exit code; None is 0."""


class Parser(argparse.ArgumentParser):
    """Options are written out in full; the last line of what is refused says why."""

    def __init__(self, prog: str | None = None, description: str = "") -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"\nError: {message}\n")


def add_general_options(parser: argparse.ArgumentParser, shown: bool = True) -> None:
    """Those of ``GENERAL``."""
    for name, text in GENERAL.items():
        told = text if shown else argparse.SUPPRESS
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", default=argparse.SUPPRESS, help=told)


class Commands:
    """The commands of ``tidemill``, or of a group among them; without one the help is shown.

    ``names`` are all that a person can type, those of groups too.
    """

    def __init__(self, parser: Parser, prefix: str = "") -> None:
        self.names: list[str] = []
        self._parser = parser
        self._prefix = prefix
        self._choices = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, prog=parser.prog)
        parser.usage = "%(prog)s [OPTIONS] COMMAND ..."
        parser.epilog = "commands:"
        parser.set_defaults(run=self._help)

    def add(self, name: str, run: Run, text: str = "", project: bool = True) -> Parser:
        """A command; its help is ``text``, by default the function's docstring."""
        self.names.append(self._prefix + name)
        parser = self._add(name, text or run.__doc__ or "")
        parser.set_defaults(run=run)
        if project:
            parser.add_argument(
                "-p", "--project", type=Path, default=Path("."), metavar="FOLDER", help="the project's folder"
            )
        return parser

    def group(self, name: str, text: str) -> "Commands":
        """A command that has commands."""
        group = Commands(self._add(name, text), f"{name} ")
        group.names = self.names
        return group

    def _add(self, name: str, text: str) -> Parser:
        """Listed with the first sentence of its text."""
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        first = paragraphs[0].partition(". ")[0].removesuffix(".")
        self._parser.epilog = f"{self._parser.epilog}\n  {_filled(f'{name:<12}{first}', 14)}"
        parser: Parser = self._choices.add_parser(name, description="\n\n".join(map(_filled, paragraphs)))
        add_general_options(parser, shown=False)
        return parser

    def _help(self) -> int:
        self._parser.print_help()
        return 2


def _filled(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, WIDTH - min(indent, 2), subsequent_indent=" " * indent)


def number(kind: type[int] | type[float], least: float, most: float = float("inf")) -> Callable[[str], float]:
    """The type of an option that takes a number within bounds."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least) - 1
        if not least <= value <= most or not math.isfinite(value):
            wanted = "a whole number" if kind is int else "a number"
            bounds = f"from {least:g} on" if most == float("inf") else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted} {bounds}")
        return value

    return parse


@contextmanager
def open_project(directory: Path, role: str = "") -> Iterator["Wiring"]:
    """The project's parts; its log is closed afterwards. As a ``role`` the process gives way to the predictor."""
    from tidemill.priority import be_nice, leave_a_core

    be_nice(role)
    from tidemill.wiring import Wiring

    wiring = Wiring(directory)
    leave_a_core(role, wiring.settings.trainer.cores)
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
    from tidemill.temporary import remove_all

    leaving: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end() -> None:
        code = leaving.get()
        threading.Event().wait(EXIT_SECONDS)
        remove_all()
        os._exit(code)

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)
        code = 128 + number if unfinished else 0
        leaving.put(code)
        raise SystemExit(code)

    threading.Thread(target=end, name="exit", daemon=True).start()
    for one in ENDING:
        if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN:  # nohup
            signal.signal(one, handle)
    return threading.Event()


def say(text: str) -> None:
    """One line to the standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def check_page(file: Path | None) -> None:
    """What would fail once a page is written is said before the work for it is done."""
    from tidemill.errors import ConfigError
    from tidemill.pages import library

    if file is None:
        return
    library()
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent} is no folder")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: name the file that the page shall be")


def write_page(page: str, file: Path, quiet: bool = False, told: str = "") -> None:
    """Write it, and say where it is, unless ``quiet``."""
    from tidemill.errors import Unavailable

    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}") from error
    if not quiet:
        say(f"{file}: {told}{len(page) / 1e6:.1f} MB")
