"""Where each microsecond of an answer goes: the predictor's loop in this process, with a clock around each of its steps."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from msgspec import Struct

from bench.stage import append, end_of, requests, wait_for
from tidemill.core.answers import Answerer
from tidemill.core.matrix_decoder import MatrixDecoder
from tidemill.roles.predictor import Predictor
from tidemill.wiring import Wiring

WARM = 1000
SECONDS = 6.0
"""Until the faster engine is ready."""


class Spent:
    """Seconds by step, of the calls that began after ``begin``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = 0.0

    def begin(self) -> float:
        """Forget what was before."""
        self.seconds.clear()
        self._since = time.perf_counter()
        return self._since

    def clocked(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, with a clock around it."""

        def clocked(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                if started >= self._since:
                    self.seconds[name] += time.perf_counter() - started

        return clocked


class Profile(Struct, frozen=True):
    """Microseconds a request, with a backlog. ``decode``: from JSON to the matrix; ``score``: the model and its labels;
    ``messages``: envelopes, and answers as JSON; ``commit``: outputs to the log, and its word that they are there; ``rest``:
    waiting for the senders, the loop.
    """

    log: str
    poll: float
    decode: float
    score: float
    messages: float
    commit: float
    rest: float


def measure(wiring: Wiring, backlog: int) -> Profile:
    """The predictor has its model and its faster engine before the backlog comes."""
    spent = Spent()
    place = wiring.log.join("profile", [wiring.topics.requests], "end")
    predictor = Predictor(wiring.log, wiring.topics, wiring.store, wiring.settings.predictor, wiring.clock)
    stop, before = threading.Event(), end_of(wiring, wiring.topics.predictions)
    thread = threading.Thread(target=predictor.run, args=(stop,))
    steps = [
        (type(place), "poll"),
        (type(place), "commit"),
        (MatrixDecoder, "decode"),
        (Answerer, "answer"),
        (Predictor, "_handle"),
    ]
    place.close()
    messages = requests(wiring, f"profile-{time.monotonic_ns()}", WARM + backlog)
    with ExitStack() as clocks:
        for kind, name in steps:
            clocks.enter_context(patch.object(kind, name, spent.clocked(getattr(kind, name), name)))
        thread.start()
        wiring.log.append(messages[:WARM])
        wait_for(lambda: end_of(wiring, wiring.topics.predictions) >= before + WARM)
        time.sleep(SECONDS)
        started = spent.begin()
        append(wiring, messages[WARM:])
        wait_for(lambda: end_of(wiring, wiring.topics.predictions) >= before + len(messages), pause=0.02)
        wall = time.perf_counter() - started
        found = {name: seconds / backlog * 1e6 for name, seconds in spent.seconds.items()}
        stop.set()
        thread.join()
    return Profile(
        wiring.configuration.log_kind,
        found["poll"],
        found["decode"],
        found["answer"] - found["decode"],
        found["_handle"] - found["answer"],
        found["commit"],
        wall / backlog * 1e6 - found["poll"] - found["_handle"] - found["commit"],
    )
