"""What was measured as tables, plots and ratios, and how far a ratio may go."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from bench.kafka import MINE, ORIGINAL, QUIX_VERSION, RAW, WIDE, WIDE_BATCH
from bench.stage import LEAVES, TREES
from tidemill.testing.kafka_broker import KAFKA_VERSION

Results = Mapping[str, Any]

AIMS: dict[str, tuple[str, float]] = {
    "kafka_throughput_to_echo": (">=", 0.8),
    "kafka_throughput_to_Quix_Streams,_defaults": (">=", 15.0),
    "kafka_throughput_to_Quix_Streams,_best_settings": (">=", 15.0),
    "kafka_throughput_to_the_original's_way": (">=", 800.0),
    "kafka_throughput_at_4000_to_the_original's_way": (">=", 800.0),
    "kafka_p99_to_echo_at_1000": ("<=", 1.5),
    "kafka_training_p99_to_quiet": ("<=", 2.0),
    "sqlite_throughput_to_loop": (">=", 0.7),
    "scoring_llvm_to_lightgbm_at_1": (">=", 8.0),
    "scoring_llvm_to_lightgbm_at_64": (">=", 15.0),
    "scoring_numpy_to_lightgbm_at_64": (">=", 3.0),
}
"""What we want on two cores; why one is not reached stands in ``docs/decisions``."""

BOUNDS: dict[str, tuple[str, float]] = {
    "kafka_throughput_to_echo": (">=", 0.3),
    "kafka_p99_to_echo_at_1000": ("<=", 6.0),
    "sqlite_throughput_to_loop": (">=", 0.2),
    "scoring_numpy_to_lightgbm_at_64": (">=", 2.0),
    "scoring_llvm_to_lightgbm_at_64": (">=", 7.0),
}
"""Half, or twice, of what a machine of two cores gives, and more: a bound is for what breaks, not for noise."""

TITLES = {
    "machine": "Machine",
    "ratios": "Ratios",
    "drift_calibration": "Drift: how often a small p comes, against how often it should",
    "drift_budget": "Drift: alarms without drift",
    "drift_usual": "Drift: usual rules without drift",
    "drift_planted": "Drift: rows until a planted shift is found",
    "drift_flights": "Drift: a year of flights, and years whose days or weeks are in another order",
    "drift_cost": "Drift: seconds of the processor for 100,000 requests",
    "drift_estimator": "Drift: the joint estimate of 16,000 against 16,000 rows",
    "kafka_throughput": "Kafka: requests a second with a backlog",
    "kafka_latency": "Kafka: milliseconds from due to seen, open loop",
    "kafka_training": "Kafka: beside a retraining",
    "kafka_swaps": "Kafka: swaps under traffic",
    "scale": "Kafka: predictors that share the partitions",
    "sqlite_throughput": "SQLite: requests a second with a backlog",
    "sqlite_training": "SQLite: beside a retraining",
    "sqlite_swaps": "SQLite: swaps under traffic",
    "scoring": "Scoring engines, microseconds a row",
    "coding": "The hot path by step, microseconds a row",
    "profile": "The predictor with a backlog: where each microsecond of a request goes",
    "start": "Start of a process",
    "lake": "Recorder, monitor, join",
    "proposers": "Proposers: milliseconds of an ask and a tell",
    "tracking": "MLflow: 1,000 trials, by how many have runs",
    "search_cold": "Search: 50 trials from nothing, against the original's way",
    "search_memory": "Search: retrainings that remember, against cold searches of 50 trials on the same rows",
    "search_engines": "Search: engines against random points, gain in log loss",
    "search_shift": "Search: 20 trials after a shift, with memory and without, gain in log loss",
}

PLOTS = {"kafka_throughput": "throughput.svg", "kafka_latency": "latency.svg", "scoring": "scoring.svg"}


def machine() -> dict[str, object]:
    """What the figures are of."""
    names = ("tidemill", "lightgbm", "numpy", "llvmlite", "msgspec", "polars", "deltalake", "confluent-kafka")
    return {
        "processors": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "quixstreams": QUIX_VERSION,
        **{name: found for name in names if (found := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def ratios(results: Results) -> dict[str, float]:
    """What can be compared with what another machine measured."""
    found: dict[str, float] = {}
    speed = {one["program"]: one["per_second"] for one in results.get("kafka_throughput", [])}
    if RAW in speed:
        found["kafka_throughput_to_echo"] = speed[MINE] / speed[RAW]
        found |= {
            f"kafka_throughput_to_{name.replace(' ', '_')}": speed[MINE] / value
            for name, value in speed.items()
            if name not in (RAW, MINE, WIDE)
        }
    if WIDE in speed:
        found[f"kafka_throughput_at_{WIDE_BATCH}_to_{ORIGINAL.replace(' ', '_')}"] = speed[WIDE] / speed[ORIGINAL]
    p99 = {(one["program"], one["rate"]): one["p99"] for one in results.get("kafka_latency", [])}
    found |= {f"kafka_p99_to_echo_at_{rate}": value / p99[RAW, rate] for (name, rate), value in p99.items() if name == MINE}
    if "sqlite_throughput" in results:
        one = results["sqlite_throughput"]
        found["sqlite_throughput_to_loop"] = one["predictor"] / one["echo"]
    for log in ("sqlite", "kafka"):
        if f"{log}_training" in results:
            one = results[f"{log}_training"]
            found[f"{log}_training_p99_to_quiet"] = one["training_p99"] / one["quiet_p99"]
        if f"{log}_swaps" in results:
            one = results[f"{log}_swaps"]
            found[f"{log}_swap_gap_to_quiet"] = one["gap_p50"] / one["quiet_gap_p50"]
    for row in _scoring(results):
        for engine in ("numpy", "llvm"):
            if row[engine]:
                found[f"scoring_{engine}_to_lightgbm_at_{row['batch']}"] = row["lightgbm"] / row[engine]
    return found


def _scoring(results: Results) -> list[Any]:
    """Of the model that serves in the other parts."""
    return [row for row in results.get("scoring", []) if (row["trees"], row["leaves"]) == (TREES, LEAVES)]


def beyond(found: Mapping[str, float]) -> list[str]:
    """A line for each ratio that is out of its bound."""
    lines = []
    for name, (sign, bound) in BOUNDS.items():
        if name in found and not _keeps(found[name], sign, bound):
            lines.append(f"{name} is {found[name]:.2f}, not {sign} {bound:g}")
    return lines


def write(folder: Path, results: Results) -> str:
    """``results.json``, a plot for what has several points if matplotlib is there, and ``README.md``, which comes back."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {**results, "ratios": ratios(results)}
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    _plot(folder, results)
    text = page(results)
    (folder / "README.md").write_text(text)
    return text


def page(results: Results) -> str:
    """All of it for people (Markdown)."""
    parts = [
        "# Benchmarks",
        "What `make bench` measured, each part in one go. Absolute figures are of the machine; what counts are the ratios, "
        "of things that were measured side by side. This page is made from `results.json` by `python -m bench --out "
        "docs/benchmarks`.",
    ]
    for name, title in TITLES.items():
        if results.get(name):
            plot = [f"![{title}]({PLOTS[name]})"] if name in PLOTS else []
            parts += [f"## {title}", *plot, _ratios(results[name]) if name == "ratios" else _table(results[name])]
    return "\n\n".join(parts) + "\n"


def _ratios(found: Mapping[str, float]) -> str:
    """Beside what we want."""
    rows = []
    for name, value in found.items():
        sign, wanted = AIMS.get(name, ("", 0.0))
        reached = "" if not sign else "yes" if _keeps(value, sign, wanted) else "no"
        rows.append(
            {"ratio": name.replace("_", " "), "": value, "aim": f"{sign} {wanted:g}" if sign else "", "reached": reached}
        )
    return _table(rows)


def _table(value: Any) -> str:
    if isinstance(value, Mapping) and value and all(isinstance(one, Mapping) for one in value.values()):
        value = [{"": name, **one} for name, one in value.items()]
    if isinstance(value, Sequence):
        names = list(dict.fromkeys(name for row in value for name in row))
        rows = [[_shown(row.get(name, "")) for name in names] for row in value]
    else:
        names, rows = ["", " "], [[name.replace("_", " "), _shown(one)] for name, one in value.items()]
    lines = [" | ".join(name.replace("_", " ") for name in names), " | ".join("---" for _ in names)]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(row) for row in rows)])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _keeps(value: float, sign: str, bound: float) -> bool:
    return value >= bound if sign == ">=" else value <= bound


def _plot(folder: Path, results: Results) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("bench: no plots: pip install 'tidemill[bench]'")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tidemill"
    from matplotlib import pyplot

    if results.get("kafka_throughput"):
        _, axes = pyplot.subplots(figsize=(8, 4))
        rows = sorted(results["kafka_throughput"], key=lambda row: float(row["per_second"]))
        axes.barh([row["program"] for row in rows], [row["per_second"] for row in rows])
        axes.set(xscale="log", xlabel="requests a second, with a backlog")
        _save(pyplot, folder / PLOTS["kafka_throughput"])
    if results.get("kafka_latency"):
        _, axes = pyplot.subplots(figsize=(8, 4.5))
        for name in dict.fromkeys(row["program"] for row in results["kafka_latency"]):
            rows = [row for row in results["kafka_latency"] if row["program"] == name]
            axes.plot([row["rate"] for row in rows], [row["p99"] for row in rows], marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="offered requests a second", ylabel="p99, ms from due to seen")
        axes.legend(fontsize="small")
        _save(pyplot, folder / PLOTS["kafka_latency"])
    if _scoring(results):
        _, axes = pyplot.subplots(figsize=(8, 4))
        for engine in ("lightgbm", "numpy", "llvm"):
            rows = [row for row in _scoring(results) if row[engine]]
            axes.plot([row["batch"] for row in rows], [row[engine] for row in rows], marker="o", label=engine)
        axes.set(xscale="log", yscale="log", xlabel="rows in a batch", ylabel="microseconds a row")
        axes.legend()
        _save(pyplot, folder / PLOTS["scoring"])


def _save(pyplot: Any, path: Path) -> None:
    pyplot.tight_layout()
    pyplot.savefig(path, metadata={"Date": None})
    pyplot.close()
