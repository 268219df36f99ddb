"""A bundle as a model folder that MLflow loads: the bundle's own bytes, and a description of them.

The description is written by hand: a flavour's own ``save_model`` would parse the model and write it anew. MLflow's flavours
of LightGBM, XGBoost and CatBoost load the library's own model. ``mlflow.pyfunc`` loads any learner's, and answers with its
bits: through LightGBM's flavour, or through ``tidemill.registered``, which must be installed where it is loaded.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tidemill.core.schema import Schema
from tidemill.errors import Unavailable

MANIFEST = "manifest.json"
FILES = ("encoder.json", "schema.json", "decision.json", MANIFEST)
LOADER = "tidemill.registered"


class _Flavor(Struct, frozen=True):
    """MLflow's name of the model file, and what its own flavour is told; ``package`` is what must be installed."""

    file: str = "model.txt"
    told: dict[str, str] = {}
    package: str = "tidemill"


FLAVORS = {
    "lightgbm": _Flavor("model.lgb", {"model_class": "lightgbm.basic.Booster"}, "lightgbm"),
    "xgboost": _Flavor("model.json", {"model_class": "xgboost.core.Booster", "model_format": "json"}, "tidemill[xgboost]"),
    "catboost": _Flavor("model.cb", {"model_type": "CatBoost", "save_format": "cbm"}, "tidemill[catboost]"),
}


class _Manifest(Struct, frozen=True):
    learner: str = "lightgbm"


def learner_of(bundle: Path) -> str:
    """Raises ``Unavailable`` for a bundle that vanishes meanwhile, or is damaged."""
    try:
        data = (bundle / MANIFEST).read_bytes() if (bundle / MANIFEST).exists() else b"{}"
        return msgspec.json.decode(data, type=_Manifest).learner
    except (OSError, ValueError) as error:
        raise Unavailable(f"bundle {bundle}: {error}") from error


@contextlib.contextmanager
def write_model(bundle: Path, tags: Mapping[str, str], model_id: str) -> Iterator[Path]:
    """A temporary folder with the model of a bundle: ``MLmodel``, the bytes of ``model.txt``, what it needs to be loaded,
    and the bundle's other files under ``bundle/``.

    Raises ``Unavailable`` for a bundle that vanishes meanwhile, or is damaged.
    """
    from mlflow.models import Model

    learner = learner_of(bundle)
    flavor = FLAVORS.get(learner, _Flavor())
    with tempfile.TemporaryDirectory(prefix="tidemill-mlflow-") as name:
        folder = Path(name)
        try:
            shutil.copyfile(bundle / "model.txt", folder / flavor.file)
            (folder / "bundle").mkdir()
            for file in FILES:
                if (bundle / file).exists():
                    shutil.copyfile(bundle / file, folder / "bundle" / file)
            schema = msgspec.json.decode((bundle / "schema.json").read_bytes(), type=Schema)
        except (OSError, ValueError) as error:
            raise Unavailable(f"bundle {bundle}: {error}") from error
        python = ".".join(map(str, sys.version_info[:3]))
        model = Model(signature=signature(schema), metadata=dict(tags), model_id=model_id)
        loader = "mlflow.lightgbm" if learner == "lightgbm" else LOADER
        environment = {"virtualenv": "python_env.yaml"}
        model.add_flavor("python_function", loader_module=loader, python_version=python, data=flavor.file, env=environment)
        if flavor.told:
            model.add_flavor(learner, data=flavor.file, code=None, **flavor.told)
        model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        model.save(str(folder / "MLmodel"))
        needed = {"mlflow": "mlflow", flavor.package: flavor.package.partition("[")[0]}
        lines = [f"{package}=={metadata.version(name)}\n" for package, name in needed.items()]
        (folder / "requirements.txt").write_text("".join(lines))
        # JSON is YAML.
        environment_file = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
        (folder / "python_env.yaml").write_text(json.dumps(environment_file) + "\n")
        yield folder


def signature(schema: Schema) -> Any:
    """The encoded matrix by the names of its columns (each may be missing), and the answers as the learner gives them."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, TensorSpec
    from mlflow.types import Schema as Columns

    inputs = Columns([ColSpec("double", name, required=False) for name in schema.columns])
    shape = (-1, len(schema.classes)) if schema.task == "multiclass" else (-1,)
    return ModelSignature(inputs, Columns([TensorSpec(np.dtype(np.float64), shape)]))
