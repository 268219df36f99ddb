"""Swaps under traffic: the predictor alone changes its model again and again, and how long nobody was answered meanwhile."""

import time
from collections.abc import Callable

import msgspec
import numpy as np
from msgspec import Struct

from bench.latency import Pulse
from bench.stage import end_of, running, serve, wait_for, write_model
from tidemill.log.base import read_all
from tidemill.messages import Event
from tidemill.wiring import Wiring

SECONDS = 0.4
"""From one announcement to the next; a swap takes about half of it."""


class Swaps(Struct, frozen=True):
    """Milliseconds between two sights of answers: the longest around each swap, and in stretches as long without one.

    ``load_ms``: to verify a bundle and load its model; ``ready_ms``: from the announcement until the new version serves.
    """

    swaps: int
    rate: int
    gap_p50: float
    gap_longest: float
    quiet_gap_p50: float
    quiet_gap_longest: float
    load_ms: float
    ready_ms: float


def measure(wiring: Wiring, swaps: int, rate: int) -> Swaps:
    """Two models take turns. The predictor is the only role that runs."""
    versions = [write_model(wiring, number) for number in (2, 3)]
    loads = [_load_ms(wiring, version.bundle) for version in versions for _ in range(3)]
    before = end_of(wiring, wiring.topics.predictions)
    with running("predictor", wiring.configuration.root), Pulse(wiring, rate) as pulse:
        wait_for(lambda: end_of(wiring, wiring.topics.predictions) > before)
        time.sleep(3.0)
        quiet = _stretches(swaps, lambda number: None)
        announced_at = wiring.clock.now_ms()
        busy = _stretches(swaps, lambda number: serve(wiring, versions[number % 2]))
        time.sleep(0.5)
    gaps = [pulse.longest_gap(start, start + SECONDS) for start in busy]
    quiet_gaps = [pulse.longest_gap(start, start + SECONDS) for start in quiet]
    return Swaps(
        swaps,
        rate,
        float(np.median(gaps)),
        max(gaps),
        float(np.median(quiet_gaps)),
        max(quiet_gaps),
        float(np.median(loads)),
        _ready_ms(wiring, announced_at),
    )


def _stretches(count: int, begin: Callable[[int], None]) -> list[float]:
    """When each began."""
    starts = []
    for number in range(count):
        starts.append(time.monotonic())
        begin(number)
        time.sleep(max(0.0, starts[-1] + SECONDS - time.monotonic()))
    return starts


def _load_ms(wiring: Wiring, bundle: str) -> float:
    started = time.perf_counter()
    wiring.store.load(bundle).close()
    return (time.perf_counter() - started) * 1000


def _ready_ms(wiring: Wiring, since: int) -> float:
    """The median over the swaps, by the log's times of the announcement and the event's own time."""
    models = [record.time_ms for record in read_all(wiring.log, wiring.topics.models) if record.key == b"champion"]
    announced = [at for at in models if at >= since]
    events = [msgspec.json.decode(record.value, type=Event) for record in read_all(wiring.log, wiring.topics.events)]
    swapped = [event.at for event in events if event.name == "model_swapped" and event.at >= since]
    found = np.searchsorted(announced, swapped, side="right") - 1
    return float(np.median([at - announced[place] for at, place in zip(swapped, found, strict=True) if place >= 0]))
