"""The loop of every role that consumes topics: poll, handle, commit.

A turn has three steps, and a process may die between any two of them:

1. poll a batch; nothing is written;
2. handle it: a pure step for the log (a sink may write its data with the position inside);
3. commit: outputs and position become visible together.
"""

import threading
from collections.abc import Callable, Sequence

from tidemill.failpoints import failpoint
from tidemill.log.base import Batch, Message, Reader


def run_loop(
    role: str,
    reader: Reader,
    handle: Callable[[Batch], Sequence[Message]],
    stop: threading.Event,
    limit: int,
    timeout: float,
    idle: Callable[[], None] = lambda: None,
) -> None:
    """Turn until ``stop`` is set. ``idle`` is called after every poll that brought nothing."""
    while not stop.is_set():
        batch = reader.poll(limit, timeout)
        if not len(batch):
            idle()
            continue
        failpoint(f"{role}.polled")
        outputs = handle(batch)
        failpoint(f"{role}.handled")
        reader.commit(outputs)
        failpoint(f"{role}.committed")
