"""Processes that end with the test that started them."""

from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import AnyStr


@contextmanager
def ending(process: "Popen[AnyStr]") -> "Iterator[Popen[AnyStr]]":
    """Kill it on the way out. ``Popen`` alone waits for it there: for ever, where a test has failed before its signal."""
    with process:
        try:
            yield process
        finally:
            process.kill()
