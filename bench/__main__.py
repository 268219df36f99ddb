"""``make bench``: every comparison of speed in one run, as tables (Markdown), plots (SVG) and ``results.json``.

Absolute figures are of the machine; what counts are the ratios, which are measured side by side. ``--small`` takes two
minutes, and fails where a ratio is twice beyond what it may be on any machine. What models are worth (``search``, ``drift``)
is measured by hundreds of trainings, which take hours: only where ``--parts`` names it.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import (
    coding,
    drift,
    drift_estimator,
    kafka,
    lake,
    latency,
    profile,
    proposers,
    report,
    scoring,
    search,
    start,
    swaps,
    throughput,
    tracking,
)
from bench.stage import open_stage
from tidemill.testing.kafka_broker import KafkaBroker, missing
from tidemill.wiring import Wiring

RESULTS = Path(__file__).parent / "results"
RATE = 500
"""Requests a second beside a retraining on the SQLite log; on Kafka it is ``KAFKA_RATE``."""
KAFKA_RATE = 1000


class Effort(Struct, frozen=True):
    """How much is measured: a backlog for the throughputs, rates and seconds for the latencies, rows of the lake."""

    backlog: int
    seconds: float
    rates: tuple[int, ...]
    programs: str
    predictors: tuple[int, ...]
    swaps: int
    history: tuple[int, ...]


WHOLE = Effort(100_000, 15.0, (200, 500, 1000, 2000, 4000, 8000), "all", (1, 2, 4), 100, (100_000, 1_000_000, 10_000_000))
SMALL = Effort(30_000, 6.0, (1000,), "two", (), 0, ())

Part = Callable[[Effort], dict[str, object]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--small", action="store_true", help="two minutes, and only what has a bound")
    parser.add_argument("--parts", default="", help=f"of {', '.join(PARTS)}: some, with commas between")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="the folder of what was measured; what is there of parts that --parts leaves out stays",
    )
    parser.add_argument("--no-quix", action="store_true", help="leave Quix Streams out: it needs an environment of its own")
    given = parser.parse_args()
    effort = SMALL if given.small else WHOLE
    if given.no_quix and effort.programs == "all":
        effort = msgspec.structs.replace(effort, programs="ours")
    usual = SMALL_PARTS if given.small else [name for name in PARTS if name not in HOURS]
    wanted = given.parts.split(",") if given.parts else list(usual)
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    results, failed = _measured(wanted, effort)
    print(report.write(given.out, _before(given.out) | results if given.parts else results))
    beyond = report.beyond(report.ratios(results)) if given.small else []
    if beyond:  # for a moment the machine may have had other work
        print(f"bench: again: {'; '.join(beyond)}", flush=True)
        results, failed = _measured(wanted, effort)
        beyond = report.beyond(report.ratios(results))
    beyond += [f"{name} failed" for name in failed]
    for line in beyond:
        sys.stderr.write(f"bench: {line}\n")
    sys.exit(1 if beyond else 0)


def _before(folder: Path) -> dict[str, object]:
    """What is there of other parts."""
    file = folder / "results.json"
    found: dict[str, object] = msgspec.json.decode(file.read_bytes()) if file.exists() else {}
    return found


def _measured(parts: Sequence[str], effort: Effort) -> tuple[dict[str, object], list[str]]:
    """What they found, and those that failed: an hour's work of others is not lost for one."""
    results: dict[str, object] = {"machine": report.machine(), "effort": msgspec.to_builtins(effort)}
    failed = []
    for name in parts:
        print(f"bench: {name} ...", flush=True)
        try:
            results |= msgspec.to_builtins(PARTS[name](effort))
        except Exception:
            traceback.print_exc()
            failed.append(name)
    return results, failed


def _sqlite(effort: Effort) -> dict[str, object]:
    with open_stage() as wiring:
        found: dict[str, object] = {"sqlite_throughput": throughput.measure(wiring, effort.backlog)}
    if effort.swaps:
        # Of its own: a recorder that has the backlogs of above to catch up with is no quiet neighbour.
        with open_stage() as wiring:
            found["sqlite_training"] = latency.measure(wiring, RATE, effort.seconds)
            found["sqlite_swaps"] = swaps.measure(wiring, effort.swaps, RATE)
    return found


def _coding(effort: Effort) -> dict[str, object]:
    with open_stage() as wiring:
        return {"coding": coding.measure(wiring)}


def _profile(effort: Effort) -> dict[str, object]:
    with open_stage() as wiring:
        rows = [profile.measure(wiring, effort.backlog)]
    with _broker() as bench:
        return {"profile": rows + ([] if bench is None else [profile.measure(bench.wiring, effort.backlog)])}


def _start(effort: Effort) -> dict[str, object]:
    with open_stage() as wiring:
        return {"start": start.measure(wiring)}


def _scoring(effort: Effort) -> dict[str, object]:
    return {"scoring": scoring.measure()}


def _lake(effort: Effort) -> dict[str, object]:
    return {"lake": lake.measure(2 * effort.backlog, list(effort.history))}


def _proposers(effort: Effort) -> dict[str, object]:
    return {"proposers": proposers.measure()}


def _tracking(effort: Effort) -> dict[str, object]:
    return {"tracking": tracking.measure()}


def _search(effort: Effort) -> dict[str, object]:
    return search.measure(search.Effort())


def _kafka_throughput(effort: Effort) -> dict[str, object]:
    with _broker() as bench:
        if bench is None:
            return {}
        return {"kafka_throughput": bench.throughputs(kafka.programs(bench, effort.programs), effort.backlog)}


def _kafka_latency(effort: Effort) -> dict[str, object]:
    with _broker() as bench:
        if bench is None:
            return {}
        programs = kafka.programs(bench, effort.programs)
        bench.warm(programs, effort.backlog)
        delays = [
            bench.latency(program, rate, effort.seconds)
            for rate in effort.rates
            for program in programs
            if rate <= program.rate_max
        ]
        return {"kafka_latency": delays}


def _kafka_training(effort: Effort) -> dict[str, object]:
    with _broker() as bench:
        if bench is None:
            return {}
        return {
            "kafka_training": latency.measure(bench.wiring, KAFKA_RATE, effort.seconds),
            "kafka_swaps": swaps.measure(bench.wiring, effort.swaps, KAFKA_RATE),
        }


def _scale(effort: Effort) -> dict[str, object]:
    with _broker() as bench:
        return {} if bench is None else {"scale": [bench.scale(count, effort.backlog) for count in effort.predictors]}


@contextmanager
def _broker() -> Iterator["kafka.Bench | None"]:
    """A broker of its own with a project on it; None, told in a line, where none can run."""
    reason = missing()
    if reason is not None:
        print(f"bench: left out: {reason}", flush=True)
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder, KafkaBroker(Path(folder), lasting=True) as broker:
        wiring: Wiring
        with open_stage(broker.bootstrap) as wiring:
            yield kafka.Bench(broker.bootstrap, wiring)


def _drift(effort: Effort) -> dict[str, object]:
    return drift.measure(drift.Effort())


def _drift_estimator(effort: Effort) -> dict[str, object]:
    return {"drift_estimator": drift_estimator.measure()}


PARTS: dict[str, Part] = {
    "scoring": _scoring,
    "coding": _coding,
    "profile": _profile,
    "start": _start,
    "sqlite": _sqlite,
    "kafka_throughput": _kafka_throughput,
    "kafka_latency": _kafka_latency,
    "training": _kafka_training,
    "scale": _scale,
    "lake": _lake,
    "proposers": _proposers,
    "tracking": _tracking,
    "search": _search,
    "drift": _drift,
    "drift_estimator": _drift_estimator,
}
HOURS = ("search", "drift")
SMALL_PARTS = ("scoring", "sqlite", "kafka_throughput", "kafka_latency")


if __name__ == "__main__":
    main()
