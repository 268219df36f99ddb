"""``make bench``: every figure in one run, as a table and as ``bench/results/results.json``.

Absolute figures are of the machine; what counts are the ratios, which are measured side by side.
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench import kafka, latency, throughput
from bench.stage import open_stage
from tidemill.testing.kafka_broker import KAFKA_VERSION, missing

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--log", choices=["sqlite", "kafka", "both"], default="both", help="which log to measure")
    parser.add_argument("--backlog", type=int, default=100_000, help="requests that wait for the predictor")
    parser.add_argument("--rate", type=int, default=500, help="requests a second for the latencies on SQLite")
    parser.add_argument("--rates", default="200,1000,2000", help="requests a second for the latencies on Kafka")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a stretch is")
    parser.add_argument("--no-quix", action="store_true", help="leave Quix Streams out")
    given = parser.parse_args()
    results: dict[str, dict[str, object]] = {"machine": _machine()}
    if given.log in ("sqlite", "both"):
        results |= _sqlite(given.backlog, given.rate, given.seconds)
    if given.log in ("kafka", "both"):
        reason = missing()
        if reason is None:
            results |= _kafka(
                given.backlog, [int(rate) for rate in given.rates.split(",")], given.seconds, not given.no_quix
            )
        else:
            Console().print(f"Kafka is left out: {reason}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    _print(results)


def _machine() -> dict[str, object]:
    names = ("lightgbm", "numpy", "msgspec", "polars", "deltalake", "confluent-kafka")
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        **{name: version(name) for name in names},
    }


def _sqlite(backlog: int, rate: int, seconds: float) -> dict[str, dict[str, object]]:
    with open_stage() as wiring:
        speed = throughput.measure(wiring, backlog)
        delay = latency.measure(wiring, rate, seconds)
    return {
        "throughput": msgspec.to_builtins(speed),
        "latency_ms": msgspec.to_builtins(delay),
        "ratios": {
            "predictor_to_echo": speed.predictor / speed.echo,
            "scoring_share": speed.score_us_a_row * speed.predictor / 1e6,
            "training_p99_to_quiet_p99": delay.training_p99 / delay.quiet_p99,
        },
    }


def _kafka(backlog: int, rates: list[int], seconds: float, with_quix: bool) -> dict[str, dict[str, object]]:
    found = kafka.measure(backlog, rates, seconds, with_quix)
    echo, mine = found.throughput["raw echo, exactly once"], found.throughput["tidemill predictor"]
    own_us = 1e6 / mine - found.score_us_a_row - 1e6 / echo
    delays: dict[str, object] = {
        f"{one.program}, {one.rate}/s": f"p50 {one.p50:.1f}, p99 {one.p99:.1f}, unanswered {one.unanswered}"
        for one in found.latency_ms
    }
    p99 = {(one.program, one.rate): one.p99 for one in found.latency_ms}
    quix = {
        f"throughput_to_{name.lower()}": mine / speed for name, speed in found.throughput.items() if name.startswith("Quix")
    }
    return {
        "kafka_throughput": {**found.throughput, "score_us_a_row": found.score_us_a_row},
        "kafka_latency_ms": delays,
        "kafka_ratios": {
            "predictor_to_echo": mine / echo,
            "own_cost_to_echo": own_us / (1e6 / echo),
            **quix,
            **{
                f"p99_to_echo_at_{rate}": p99["tidemill predictor", rate] / p99["raw echo, exactly once", rate]
                for rate in rates
            },
        },
    }


def _print(results: dict[str, dict[str, object]]) -> None:
    for title, rows in results.items():
        table = Table(title.replace("_", " "), "")
        for name, value in rows.items():
            table.add_row(name.replace("_", " "), f"{value:,.2f}" if isinstance(value, float) else str(value))
        Console().print(table)


if __name__ == "__main__":
    main()
