"""Imports run downhill, and a library is imported only in its own adapter."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tidemill"

# A module may import those of its own level only where it stands in the same package, and those of lower levels.
LEVELS = [
    ["errors", "clock", "failpoints", "priority", "imports", "temporary"],
    ["messages"],
    ["settings", "core.*"],
    ["log.base", "learners.base", "tracking.base"],
    ["tuning.base", "executors.base", "tables", "texts", "pages", "processes", "schema_file", "plugins", "bundle_files"],
    [
        "log.*",
        "learners.*",
        "tuning.*",
        "executors.*",
        "tracking.*",
        "bundles",
        "lake",
        "original",
        "configuration",
        "app.client",
    ],
    ["roles.*", "app.*", "new_project", "audit_facts"],
    ["status", "audit", "report"],
    ["wiring", "testing.*", "supervisor"],
    ["demo.*", "demo", "backtest.*", "backtest", "drift.*", "drift", "registered"],
    ["cli.*", "cli"],
    ["__main__", "__init__"],
]
ADAPTERS = {
    "lightgbm": {"learners.lightgbm"},
    "llvmlite": {"learners.lightgbm_fast"},
    "xgboost": {"learners.xgboost"},
    "catboost": {"learners.catboost"},
    "skops": {"learners.forest"},
    "optuna": {"tuning.optuna", "report"},
    "hyperopt": {"tuning.hyperopt"},
    "skopt": {"tuning.skopt"},
    "plotly": {"pages", "report"},
    "ray": {"executors.ray"},
    "mlflow": {"tracking.*"},
    "deltalake": {"lake"},
    "confluent_kafka": {"log.*"},
    "sqlite3": {"log.*", "tracking.mlflow"},
    "sklearn": {"core.metrics", "core.drift_estimator", "learners.forest", "learners.linear"},
    "pandas": set(),
    "pickle": set(),
    "joblib": set(),
}
FORBIDDEN_IN_CORE = {"os", "pathlib", "time", "datetime", "socket", "random", "threading", "subprocess", "polars"}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if name == "__init__" or not name.endswith("__init__"):
            found[name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str], known: set[str]) -> set[str]:
    """The project's modules among imported names: the longest prefix that is a module."""
    found = set()
    for name in names:
        parts = name.removeprefix("tidemill.").split(".")
        if not name.startswith("tidemill."):
            continue
        found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in known}
    return found


def level(module: str) -> int:
    for number, patterns in reversed(list(enumerate(LEVELS))):
        if module in patterns:
            return number
    for number, patterns in enumerate(LEVELS):
        if any(p.endswith(".*") and module.startswith(p[:-1]) for p in patterns):
            return number
    raise AssertionError(f"{module} has no level: give it one")


@pytest.mark.parametrize("module", modules())
def test_imports_run_downhill(module: str) -> None:
    """A module imports lower levels, or its own package."""
    known = modules()
    for imported in own(imports(known[module]), set(known)) - {module}:
        same_package = "." in module and module.split(".", maxsplit=1)[0] == imported.split(".")[0]
        same_level = level(imported) == level(module) and same_package
        assert level(imported) < level(module) or same_level, f"{module} imports {imported}"


@pytest.mark.parametrize("library", ADAPTERS)
def test_a_library_stays_in_its_adapter(library: str) -> None:
    """A third-party library is imported by the files that adapt it, and by no other."""
    users = {
        name for name, tree in modules().items() if any(imported.split(".")[0] == library for imported in imports(tree))
    }
    assert {user for user in users if f"{user.split('.')[0]}.*" not in ADAPTERS[library]} <= ADAPTERS[library]


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("core.")])
def test_core_decides_without_the_world(module: str) -> None:
    """``core`` takes values and returns values: no files, network, clock or chance from outside."""
    roots = {imported.split(".")[0] for imported in imports(modules()[module])}
    assert not roots & FORBIDDEN_IN_CORE


def test_socket_packages_have_no_names_of_their_own() -> None:
    """A name is imported from the file that defines it: package ``__init__`` files are empty."""
    for path in SOURCE.rglob("*/__init__.py"):
        assert not path.read_text().strip(), path


WITHOUT_EXTRAS = """
import sys
for name in ("polars", "deltalake", "optuna", "sklearn", "mlflow", "pandas", "pyarrow", "confluent_kafka"):
    sys.modules[name] = None
"""


def test_the_predictor_and_the_client_need_the_core_only() -> None:
    """What a base install runs imports nothing of an extra."""
    modules = (
        "roles.predictor",
        "wiring",
        "log.sqlite",
        "bundles",
        "learners.lightgbm",
        "app.client",
        "status",
        "supervisor",
    )
    code = WITHOUT_EXTRAS + "\n".join(f"import tidemill.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_named_in_one_line() -> None:
    """Whoever lacks an extra is told which one, and how to install it."""
    code = WITHOUT_EXTRAS + "from tidemill.cli.main import main; sys.argv[1:] = ['init', 'x.csv', '--target', 'y']; main()"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "tidemill: this needs the package 'polars': pip install 'tidemill[train]'\n"
