"""Requests a second with a backlog: the raw log, the predictor alone, and the predictor beside recorder and monitor."""

import time
from contextlib import ExitStack

from msgspec import Struct

from bench.stage import append, end_of, requests, running, wait_for
from tidemill.log.base import Message, Topic
from tidemill.wiring import Wiring

BATCH = 1000
TURNS = 5
"""Of echo and predictor; the machine is faster at one minute than at the next."""


class Throughput(Struct, frozen=True):
    """Requests a second; of the turns the one whose ratio is the median."""

    backlog: int
    echo: float
    predictor: float
    predictor_beside_recorder: float


def measure(wiring: Wiring, backlog: int) -> Throughput:
    """All of it, one after the other."""
    turns = [(_echo(wiring, backlog, turn), _drained(wiring, backlog, f"alone{turn}", [])) for turn in range(TURNS)]
    echo, predictor = sorted(turns, key=lambda turn: turn[1] / turn[0])[TURNS // 2]
    return Throughput(
        backlog=backlog,
        echo=echo,
        predictor=predictor,
        predictor_beside_recorder=_drained(wiring, backlog, "beside", ["recorder", "monitor"]),
    )


def _echo(wiring: Wiring, backlog: int, turn: int) -> float:
    """The log's own limit: poll, copy, commit, in this process."""
    source, sink = f"bench.source{turn}", f"bench.sink{turn}"
    wiring.log.create([Topic(source), Topic(sink)])
    append(wiring, [Message(source, message.value, message.key) for message in requests(wiring, "echo", backlog)])
    reader = wiring.log.join(f"echo{turn}", [source])
    done, started = 0, time.monotonic()
    while done < backlog:
        batch = reader.poll(BATCH, 1.0)
        reader.commit([Message(sink, value, key) for key, value in zip(batch.keys, batch.values, strict=True)])
        done += len(batch)
    seconds = time.monotonic() - started
    reader.close()
    return backlog / seconds


def _drained(wiring: Wiring, backlog: int, name: str, beside: list[str]) -> float:
    """From the first answer seen to the last; the process has started and loaded its model by then."""
    before = end_of(wiring, wiring.topics.predictions)
    append(wiring, requests(wiring, name, backlog))
    root = wiring.configuration.root
    with ExitStack() as stack:
        for role in beside:
            stack.enter_context(running(role, root))
        stack.enter_context(running("predictor", root))
        started = wait_for(lambda: end_of(wiring, wiring.topics.predictions) > before, pause=0.001)
        first = end_of(wiring, wiring.topics.predictions)
        ended = wait_for(lambda: end_of(wiring, wiring.topics.predictions) >= before + backlog)
    return (before + backlog - first) / (ended - started)
