"""What a bundle's files hold, as bytes: the manifest that vouches for the others, golden rows, predictions out of fold."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog
from msgspec import Struct
from numpy.typing import NDArray

from tidemill.errors import BundleRefused
from tidemill.learners.base import Matrix, Model

MODEL, ENCODER, SCHEMA, GOLDEN, MANIFEST = "model.txt", "encoder.json", "schema.json", "golden.json", "manifest.json"
DECISION, OUT_OF_FOLD, REFERENCE = "decision.json", "out_of_fold.npz", "reference.json"
CONTENT = (ENCODER, MODEL, SCHEMA, DECISION)
FILES = (ENCODER, MODEL, SCHEMA, GOLDEN, MANIFEST)
OPTIONAL = (DECISION, OUT_OF_FOLD, REFERENCE)
ASIDE = (OUT_OF_FOLD, REFERENCE)
"""Not read in order to serve."""
GOLDEN_ROWS = 64
EDGE_ROWS = 64
"""Golden rows of which the writer's caller knows nothing: values at the model's own limits."""

logger = structlog.get_logger()

_ZEROS = b"0" * 64


class Card(Struct, frozen=True, kw_only=True):
    """What the manifest tells of a model's origin: the trial that won, and what it was fitted on."""

    learner: str
    metric: str
    score: float | None
    parameters: dict[str, Any]
    rounds: int
    seed: int
    data_version: int
    rows: int
    training_set: str
    experiment: str
    version: int
    created_at: int
    libraries: dict[str, str] = {}


class Manifest(Card, frozen=True, kw_only=True):
    """The card, the SHA-256 of every other file, and ``digest``: that of this file's bytes with zeros in its place."""

    files: dict[str, str]
    digest: str


class Golden(NamedTuple):
    """Encoded rows, and the answers that the model must give them, bit for bit."""

    matrix: Matrix
    answers: NDArray[np.float64]


class OutOfFold(NamedTuple):
    """For each row of a training set its label (float64[n]: class numbers from 0, or values) and the prediction of a model
    that had not learnt from it (float64[n] or float64[n, classes]); NaN for a row that no fold scored.
    """

    labels: NDArray[np.float64]
    predictions: NDArray[np.float64]


class Decision(Struct, frozen=True):
    """What turns a score into a class."""

    threshold: float


class _GoldenFile(Struct, frozen=True):
    rows: list[list[float | None]]
    answers: list[Any]


def sha256(data: bytes) -> str:
    """As 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def address(hashes: Mapping[str, str]) -> str:
    """The content address: SHA-256 of the sorted lines ``name hash``."""
    return sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(CONTENT) if name in hashes).encode())


def manifest_bytes(card: Card, files: Mapping[str, bytes]) -> bytes:
    """The card, with what vouches for the files and for itself."""
    hashes = {name: sha256(data) for name, data in sorted(files.items())}
    manifest = Manifest(**{**msgspec.structs.asdict(card), "files": hashes, "digest": _ZEROS.decode()})
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    return data.replace(b'"digest": "' + _ZEROS, b'"digest": "' + sha256(data).encode())


def parse_manifest(bundle: str, data: bytes) -> Manifest:
    """The digest is over the bytes, not over the fields: every flipped bit shows, and a later field changes no old file."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} cannot be read: {error}") from error
    blank = data.replace(b'"digest": "' + manifest.digest.encode(), b'"digest": "' + _ZEROS)
    if manifest.digest != sha256(blank):
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} is not what its digest says")
    return manifest


def gives(model: Model, golden: Golden) -> bool:
    """Whether a model gives the golden answers, bit for bit; no rows prove nothing."""
    return len(golden.matrix) > 0 and model.predict(golden.matrix).tobytes() == golden.answers.tobytes()


def golden_bytes(model: Model, matrices: Sequence[Matrix]) -> bytes:
    """JSON has no NaN: missing is null. Infinities are made missing before the model is asked."""
    matrix = _without_infinities(np.concatenate(matrices))
    rows = [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]
    return msgspec.json.encode(_GoldenFile(rows, model.predict(matrix).tolist()))


def _without_infinities(matrix: Matrix) -> Matrix:
    return np.where(np.isfinite(matrix), matrix, np.nan)


def edge_rows(model: Model, reference: Model) -> Matrix:
    """Rows at the model's limits, first those on which its engine and the library differ, then some from all over."""
    matrix = _without_infinities(model.edge_rows())
    if not len(matrix):
        return matrix
    wanted, found = (one.predict(matrix).reshape(len(matrix), -1) for one in (reference, model))
    same = np.all(wanted.view(np.uint64) == found.view(np.uint64), axis=1)
    if not same.all():
        logger.warning("engine_differs", engine=model.engine, rows=int((~same).sum()), of=len(matrix))
    good = np.all(np.isfinite(wanted), axis=1)
    spread = np.linspace(0, len(matrix) - 1, EDGE_ROWS).astype(np.intp)
    order = np.concatenate([np.flatnonzero(~same), np.unique(spread)])
    rows: Matrix = matrix[order[good[order]][:EDGE_ROWS]]
    return rows


def golden_of(data: bytes) -> Golden:
    """What ``golden_bytes`` made."""
    golden = msgspec.json.decode(data, type=_GoldenFile)
    rows = [[np.nan if value is None else value for value in row] for row in golden.rows]
    return Golden(np.array(rows, dtype=np.float64), np.array(golden.answers, dtype=np.float64))


def out_of_fold_bytes(found: OutOfFold) -> bytes:
    """An ``npz`` file without pickles."""
    file = io.BytesIO()
    np.savez(file, labels=found.labels, predictions=found.predictions)
    return file.getvalue()


def out_of_fold_of(data: bytes) -> OutOfFold:
    """What ``out_of_fold_bytes`` made."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return OutOfFold(arrays["labels"], arrays["predictions"])
