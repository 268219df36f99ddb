"""A bundle as a model folder that MLflow's LightGBM flavour loads: the bundle's own bytes, and a description of them.

The description is written by hand: the flavour's own ``save_model`` would parse the model and write it anew.
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

from tidemill.core.schema import Schema
from tidemill.errors import Unavailable

FILES = ("encoder.json", "schema.json", "manifest.json")


@contextlib.contextmanager
def write_model(bundle: Path, tags: Mapping[str, str], model_id: str) -> Iterator[Path]:
    """A temporary folder with the model of a bundle: ``MLmodel``, ``model.lgb`` (the bytes of ``model.txt``), what it needs
    to be loaded, and the encoder, schema and manifest under ``bundle/``.

    Raises ``Unavailable`` for a bundle that vanishes meanwhile, or whose schema cannot be read.
    """
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="tidemill-mlflow-") as name:
        folder = Path(name)
        try:
            shutil.copyfile(bundle / "model.txt", folder / "model.lgb")
            (folder / "bundle").mkdir()
            for file in FILES:
                if (bundle / file).exists():
                    shutil.copyfile(bundle / file, folder / "bundle" / file)
            schema = msgspec.json.decode((bundle / "schema.json").read_bytes(), type=Schema)
        except (OSError, ValueError) as error:
            raise Unavailable(f"bundle {bundle}: {error}") from error
        version = metadata.version("lightgbm")
        python = ".".join(map(str, sys.version_info[:3]))
        data = {"data": "model.lgb", "code": None}
        model = Model(signature=signature(schema), metadata=dict(tags), model_id=model_id)
        environment = {"virtualenv": "python_env.yaml"}
        model.add_flavor("python_function", loader_module="mlflow.lightgbm", python_version=python, env=environment, **data)
        model.add_flavor("lightgbm", lgb_version=version, model_class="lightgbm.basic.Booster", **data)
        model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        model.save(str(folder / "MLmodel"))
        (folder / "requirements.txt").write_text(f"mlflow=={metadata.version('mlflow')}\nlightgbm=={version}\n")
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
