"""What ``mlflow.pyfunc.load_model`` calls for a registered model: any learner's model, which answers with its own bits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.bundle_files import MANIFEST, MODEL, SCHEMA, Manifest
from tidemill.core.schema import Schema
from tidemill.errors import BundleRefused
from tidemill.learners.base import Model
from tidemill.wiring import learner


class RegisteredModel:
    """Takes the encoded matrix, as a DataFrame of its columns (one that is not there is missing in every row) or alone."""

    def __init__(self, model: Model, columns: Sequence[str]) -> None:
        self._model = model
        self._columns = columns

    def predict(self, data: Any) -> NDArray[np.float64]:
        """The model's answers."""
        ordered = data.reindex(columns=self._columns) if hasattr(data, "reindex") else data
        return self._model.predict(np.asarray(ordered, dtype=np.float64))


def _load_pyfunc(path: str) -> RegisteredModel:
    """``path`` is the model file's, as ``tracking.mlflow_model`` writes it. Raises ``BundleRefused`` for a damaged one."""
    data, folder = Path(path).read_bytes(), Path(path).parent / "bundle"
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    if hashlib.sha256(data).hexdigest() != manifest.files[MODEL]:
        raise BundleRefused(f"{path} is not what its manifest says")
    schema = msgspec.json.decode((folder / SCHEMA).read_bytes(), type=Schema)
    return RegisteredModel(learner(manifest.learner).load(data), schema.columns)
