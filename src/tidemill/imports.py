"""What a library imports only where it happens to be installed can cost more than the library itself."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_importing = threading.Lock()


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Meanwhile these top-level modules look as if they were not installed, but for those that are imported already.

    A module that is None in ``sys.modules`` does; the entries are taken out again, so that everybody else can still import
    it.
    """
    with _importing:
        absent = [name for name in names if name not in sys.modules]
        sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
        try:
            yield
        finally:
            for name in absent:
                del sys.modules[name]
