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

from bench import latency, throughput
from bench.stage import open_stage

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--backlog", type=int, default=100_000, help="requests that wait for the predictor")
    parser.add_argument("--rate", type=int, default=500, help="requests a second for the latencies")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the quiet stretch is")
    given = parser.parse_args()
    with open_stage() as wiring:
        speed = throughput.measure(wiring, given.backlog)
        delay = latency.measure(wiring, given.rate, given.seconds)
    results = {
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("lightgbm", "numpy", "msgspec", "polars", "deltalake")},
        },
        "throughput": msgspec.to_builtins(speed),
        "latency_ms": msgspec.to_builtins(delay),
        "ratios": {
            "predictor_to_echo": speed.predictor / speed.echo,
            "scoring_share": speed.score_us_a_row * speed.predictor / 1e6,
            "training_p99_to_quiet_p99": delay.training_p99 / delay.quiet_p99,
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    _print(results)


def _print(results: dict[str, dict[str, object]]) -> None:
    for title, rows in results.items():
        table = Table(title.replace("_", " "), "")
        for name, value in rows.items():
            table.add_row(name.replace("_", " "), f"{value:,.2f}" if isinstance(value, float) else str(value))
        Console().print(table)


if __name__ == "__main__":
    main()
